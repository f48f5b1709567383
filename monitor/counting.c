/* Columns of one model into profiles: what monitor/counting.py does with numpy, number by number, in one pass without a column in between.
 *
 *     column ──► block of codes, flags and quanta ──► added to a profile for each grouping
 *
 * Every number that a profile holds is whole, and is the one that monitor/binning.py defines: the same operations of IEEE 754 in the same order. So the file
 * is compiled without contraction (no fused multiply and add), and nothing of it may be reordered.
 */
#include <stdint.h>
#include <string.h>

enum { BLOCK = 512, FLAGS = 3, MOMENTS = 3, SPECIALS = 5 };
enum { MISSING, NOT_A_NUMBER, POS_INF, NEG_INF, WRONG_TYPE }; /* as raw.SPECIALS */
enum { NONE, BELOW, ABOVE, OFF_GRID };                        /* as binning.FLAGS, from 1 on */
static const double CLIP = 1 << 26, QUANTA = 1 << 16, ON_LATTICE = 1e-3;
static const double WHOLE = 4503599627370496.0; /* 2**52: what is added to it, from 0 to as much, is rounded to a whole number, halves to even */

/* A numeric field. All members are 8 bytes wide. */
typedef struct {
    const double *left;   /* (bins + 1,) the smallest value of the reference, then the edges, then NaN */
    const int64_t *start; /* (cells + 1,) edges in lower cells: monitor/lookup.py */
    double anchor, low, high, center, scale, unit, step; /* unit 0: not exact; step 0: none */
    int64_t shift, first, cells, bins, grid, at;         /* at: where its numbers stand in a profile */
} NumericField;

/* A column of numbers: of the field `field`. Bits of `valid` from `offset` on say where there is a value, or bytes of `missing` and `wrong` where there is none. */
typedef struct {
    int64_t field;
    const double *values;
    const uint8_t *valid;
    int64_t offset;
    const uint8_t *missing, *wrong;
} NumberColumn;

/* Categories: their texts behind each other, and a table of places in which each is found by its hash; -1: nobody. */
typedef struct {
    const uint8_t *text;
    const int64_t *ends; /* (categories + 1,) */
    const int32_t *table;
    int64_t mask, categories, at;
} TextField;

/* Rows in groups: profiles are (groups, size). */
typedef struct {
    const int64_t *group;
    int64_t *profiles;
    int64_t groups;
} Grouping;

static int64_t bits_of(double x) {
    int64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* How many edges are at or below a value. The cell never falls when the value rises, so only the edges in its cell are compared. */
static int32_t bin_of(const NumericField *f, double value) {
    int64_t cell = (bits_of(value - f->anchor) >> f->shift) - f->first;
    cell = cell < 0 ? 0 : cell >= f->cells ? f->cells - 1 : cell;
    const double *edges = f->left + 1;
    int64_t low = f->start[cell], high = f->start[cell + 1];
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (edges[middle] <= value) low = middle + 1;
        else high = middle;
    }
    return (int32_t)(low + (edges[low] <= value)); /* without a branch: none would be foreseen; the first edge of a higher cell is above the value */
}

static uint8_t flag_of(const NumericField *f, double value, int32_t bin) {
    uint8_t flag = value < f->low ? BELOW : value > f->high ? ABOVE : NONE;
    if (f->step > 0) {
        double steps = (value - f->low) / f->step;
        if (steps < 0) steps = -steps; /* rounding to even is the same on both sides of 0 */
        if (steps < WHOLE) {           /* beyond there is nothing but whole numbers, or no number */
            double off = steps - ((steps + WHOLE) - WHOLE);
            if (off > ON_LATTICE || off < -ON_LATTICE) flag = OFF_GRID;
        }
    } else if (f->grid && flag == NONE && f->left[bin] != value) {
        flag = OFF_GRID;
    }
    return flag;
}

static int64_t quantum_of(const NumericField *f, double value) {
    double q = value - f->center;
    q = f->unit > 0 ? q / f->unit : q / f->scale * QUANTA;
    q = q < -CLIP ? -CLIP : q > CLIP ? CLIP : q; /* a whole number: it is the same to clip before rounding */
    return (int64_t)((q + 1.5 * WHOLE) - 1.5 * WHOLE);
}

static int is_set(const uint8_t *bits, int64_t i) { return bits[i >> 3] >> (i & 7) & 1; }

/* One block of one column, as codes, flags and quanta. */
static void encode(const NumericField *f, const NumberColumn *c, int64_t from, int64_t n, int32_t *code, uint8_t *flag, int64_t *quantum) {
    for (int64_t i = 0; i < n; i++) {
        double value = c->values[from + i];
        int special = -1;
        if (c->valid && !is_set(c->valid, c->offset + from + i)) special = MISSING;
        else if (c->missing && c->missing[from + i]) special = MISSING;
        else if (c->wrong && c->wrong[from + i]) special = WRONG_TYPE;
        else if (value != value) special = NOT_A_NUMBER;
        else if (value - value != 0) special = value > 0 ? POS_INF : NEG_INF;
        if (special >= 0) {
            code[i] = (int32_t)f->bins + special;
            flag[i] = NONE;
            quantum[i] = 0;
        } else {
            code[i] = bin_of(f, value);
            flag[i] = flag_of(f, value, code[i]);
            quantum[i] = quantum_of(f, value);
        }
    }
}

static void add(const NumericField *f, const Grouping *grouping, int64_t size, int64_t from, int64_t n, const int32_t *code, const uint8_t *flag,
                const int64_t *quantum) {
    const int64_t flags = f->at + f->bins + SPECIALS - 1, moments = flags + 1 + FLAGS;
    if (grouping->groups == 1) { /* sums in registers */
        int64_t *profile = grouping->profiles, sum = 0, high = 0, low = 0;
        for (int64_t i = 0; i < n; i++) {
            int64_t q = quantum[i], square = q * q;
            profile[f->at + code[i]]++;
            if (flag[i]) profile[flags + flag[i]]++;
            sum += q;
            high += square >> 32;
            low += square & 0xffffffff;
        }
        profile[moments] += sum;
        profile[moments + 1] += high;
        profile[moments + 2] += low;
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        int64_t *profile = grouping->profiles + grouping->group[from + i] * size, q = quantum[i], square = q * q;
        profile[f->at + code[i]]++;
        if (flag[i]) profile[flags + flag[i]]++;
        profile[moments] += q;
        profile[moments + 1] += square >> 32;
        profile[moments + 2] += square & 0xffffffff;
    }
}

/* Add columns of numbers, n rows each, to the profiles of every grouping. Low words are not carried. */
void driftline_count_numbers(const NumericField *fields, const NumberColumn *columns, int64_t n_columns, int64_t n, const Grouping *groupings,
                             int64_t n_groupings, int64_t size) {
    int32_t code[BLOCK];
    uint8_t flag[BLOCK];
    int64_t quantum[BLOCK];
    for (int64_t c = 0; c < n_columns; c++) {
        const NumericField *f = fields + columns[c].field;
        for (int64_t from = 0; from < n; from += BLOCK) {
            int64_t rows = n - from < BLOCK ? n - from : BLOCK;
            encode(f, columns + c, from, rows, code, flag, quantum);
            for (int64_t g = 0; g < n_groupings; g++) add(f, groupings + g, size, from, rows, code, flag, quantum);
        }
    }
}

static uint32_t hash(const uint8_t *text, int64_t size) { /* FNV-1a; categories come from a reference, not from who sends events */
    uint32_t h = 2166136261u;
    for (int64_t i = 0; i < size; i++) h = (h ^ text[i]) * 16777619u;
    return h ^ h >> 15;
}

/* The place of a category; the number of categories where it is none of them. */
static int64_t place_of(const TextField *f, const uint8_t *text, int64_t size) {
    for (uint32_t slot = hash(text, size);; slot++) {
        int32_t place = f->table[slot & f->mask];
        if (place < 0) return f->categories;
        if (f->ends[place + 1] - f->ends[place] == size && memcmp(f->text + f->ends[place], text, (size_t)size) == 0) return place;
    }
}

/* Enter the categories into an empty table of `mask + 1` slots, over half of which stay empty. */
void driftline_index_texts(const TextField *f, int32_t *table) {
    for (int64_t i = 0; i < f->categories; i++) {
        uint32_t slot = hash(f->text + f->ends[i], f->ends[i + 1] - f->ends[i]);
        while (table[slot & f->mask] >= 0) slot++;
        table[slot & f->mask] = (int32_t)i;
    }
}

/* Add a column of texts in UTF-8, as Arrow has them, to the profiles of every grouping; rows whose text is no category go to `others`, and are counted. */
int64_t driftline_count_texts(const TextField *f, const uint8_t *text, const int32_t *ends, const uint8_t *valid, int64_t offset, int64_t n,
                              const Grouping *groupings, int64_t n_groupings, int64_t size, int64_t *others) {
    int64_t found = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t code = f->categories + 1 + MISSING;
        if (!valid || is_set(valid, offset + i)) {
            const int32_t *end = ends + offset + i;
            code = place_of(f, text + end[0], end[1] - end[0]);
            if (code == f->categories) others[found++] = i;
        }
        for (int64_t g = 0; g < n_groupings; g++) groupings[g].profiles[groupings[g].group[i] * size + f->at + code]++;
    }
    return found;
}
