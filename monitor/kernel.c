/* JSON events to cells: what monitor/kernel.py calls, in C for the sake of speed alone.
 *
 * A message is read only if there is nothing to decide about it: plain JSON, of models with a plan, every field of the type that the plan says, no
 * escape, no number that needs more than 64 bits. Anything else is left to the caller, message by message, who reads it as monitor/events.py does;
 * what is read here means there the same, bit by bit (tests/monitor/test_kernel.py).
 *
 * Messages stand one behind the other, each ended by a zero byte, which JSON has nowhere: so no read needs a bound. Eight readable bytes follow the last.
 * Nothing is allocated, and nothing is kept from call to call but `follows`, which guesses the order of names.
 */
#include <stdint.h>
#include <string.h>

enum { MISSING, NUMBER, TEXT };                /* tags of cells */
enum { NAME = 1, TEXTS = 2, NUMBERS = 3, FLOAT = 4 }; /* kinds of fields: monitor/kernel.py */
enum { ID, VERSION, PREDICTION, SCORE, LATENCY, FIRST };

typedef union {
    double number;
    struct { uint32_t at, size; } text;
} Cell;

typedef struct {
    const uint8_t *text;      /* all names */
    const uint32_t *at, *size; /* of each name, models first: its place in the text */
    const int32_t *owner;     /* -1: a model; else 2 * model for a feature, 2 * model + 1 for a tag */
    const int32_t *table;     /* open addressing: a name's number, or -1 */
    uint32_t mask;            /* slots of the table - 1 */
    const uint8_t *kind;      /* of each name that is a field */
    const int32_t *cell;      /* of each name that is a field: its cell in the row */
    const int32_t *cells;     /* of each model: cells of a row */
    const uint8_t *prediction; /* of each model: kind of its prediction */
    const uint8_t *aliased;   /* of each model: whether an event without id may have one by another name */
    int32_t *follows;         /* of each name: the one that came behind it last time, or -1 */
} Plans;

typedef struct {
    int64_t least_ms, most_ms; /* of ts */
    int32_t depth, features, text;
} Bounds;

typedef struct {
    int32_t *message, *model;
    int64_t *ts_ms, *first; /* first: the row's first cell */
    uint8_t *error;
    Cell *cells;
    uint8_t *tags;
    int64_t max_rows, max_cells;
} Rows;

typedef struct {
    const uint8_t *start; /* of all messages */
    const uint64_t *powers;
    const Plans *plans;
    const Bounds *bounds;
    Rows *rows;
    int64_t n, used; /* rows, cells */
    int32_t model;   /* of the last event */
} Reader;

typedef struct {
    uint64_t digits; /* at most 19 */
    int64_t power;   /* of ten */
    const uint8_t *from, *to;
    uint8_t negative, whole, zeros; /* zeros: digits behind the point are all 0, and there is no exponent */
    int places;
} Number;

#define SPACE(p) while (*(p) == ' ' || *(p) == '\n' || *(p) == '\t' || *(p) == '\r') (p)++
#define HIGH 0x8080808080808080ull
#define EACH 0x0101010101010101ull

/* Bytes of a well-formed UTF-8 sequence that is not ASCII; 0: it is none (RFC 3629). */
static int sequence(const uint8_t *p) {
    uint8_t a = p[0], low = 0x80, high = 0xbf;
    int n = a >= 0xc2 && a <= 0xdf ? 2 : (a & 0xf0) == 0xe0 ? 3 : a >= 0xf0 && a <= 0xf4 ? 4 : 0;
    if (!n) return 0;
    if (a == 0xe0) low = 0xa0;
    if (a == 0xed) high = 0x9f;
    if (a == 0xf0) low = 0x90;
    if (a == 0xf4) high = 0x8f;
    if (p[1] < low || p[1] > high) return 0;
    for (int i = 2; i < n; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    return n;
}

/* The quotation mark that ends a text without escapes; NULL: there is none. */
static const uint8_t *text_end(const uint8_t *p) {
    for (;;) {
        uint64_t eight, quote, slash;
        memcpy(&eight, p, 8);
        quote = eight ^ (EACH * '"');
        slash = eight ^ (EACH * '\\');
        /* A byte that ends the run has its high bit here: below 0x20, a quotation mark, a backslash, or not ASCII. */
        uint64_t stop = ((eight - EACH * 0x20) | ((quote - EACH) & ~quote) | ((slash - EACH) & ~slash) | eight) & HIGH;
        if (!stop) {
            p += 8;
            continue;
        }
        while (*p >= 0x20 && *p != '"' && *p != '\\' && *p < 0x80) p++;
        if (*p == '"') return p;
        if (*p < 0x80) return 0;
        while (*p >= 0x80) {
            int n = sequence(p);
            if (!n) return 0;
            p += n;
        }
    }
}

static int is_digit(uint8_t c) { return c >= '0' && c <= '9'; }

/* A number by JSON's grammar; NULL: none, or one with more digits than 64 bits hold. */
static const uint8_t *read_number(const uint8_t *p, Number *out) {
    uint64_t w = 0;
    int significant = 0;
    out->from = p;
    out->negative = *p == '-';
    p += out->negative;
    out->whole = out->zeros = 1;
    out->places = 0;
    if (*p == '0') {
        p++;
    } else {
        if (!is_digit(*p)) return 0;
        for (; is_digit(*p); p++, significant++) w = w * 10 + (*p - '0');
        if (significant > 19) return 0;
    }
    out->to = p;
    out->power = 0;
    if (*p == '.') {
        const uint8_t *point = ++p;
        if (!is_digit(*p)) return 0;
        out->whole = 0;
        for (; is_digit(*p); p++) {
            out->zeros &= *p == '0';
            if (w || *p != '0') significant++;
            if (significant > 19) return 0;
            w = w * 10 + (*p - '0');
        }
        out->power = point - p;
        out->places = (int)(p - point > 64 ? 64 : p - point);
    }
    if (*p == 'e' || *p == 'E') {
        int negative, power = 0;
        p++;
        negative = *p == '-';
        p += *p == '-' || *p == '+';
        if (!is_digit(*p)) return 0;
        for (; is_digit(*p); p++)
            if (power < 100000) power = power * 10 + (*p - '0');
        out->power += negative ? -power : power;
        out->whole = out->zeros = 0;
    }
    out->digits = w;
    return p;
}

static double as_double(uint64_t bits) {
    double x;
    memcpy(&x, &bits, 8);
    return x;
}

/* digits * 10**power, rounded to nearest even. 0: not decided here, as of numbers that are subnormal or infinite.
 *
 * Clinger 1990 where both parts are exact; else Lemire 2021, "Number parsing at a gigabyte per second", section 5, with the table of its powers of five. */
static int to_double(const Number *number, const uint64_t *powers, double *out) {
    static const double exact[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                   1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    uint64_t w = number->digits, bits;
    int64_t q = number->power;
    if (w == 0) {
        *out = number->negative ? -0.0 : 0.0;
        return 1;
    }
    if (w <= (1ull << 53) && q >= -22 && q <= 22) {
        double x = (double)w;
        x = q < 0 ? x / exact[-q] : x * exact[q];
        *out = number->negative ? -x : x;
        return 1;
    }
    if (q < -342 || q > 308) return 0;
    int zeros = __builtin_clzll(w);
    w <<= zeros;
    const uint64_t *five = powers + 2 * (q + 342);
    unsigned __int128 product = (unsigned __int128)w * five[0];
    uint64_t low = (uint64_t)product, high = (uint64_t)(product >> 64);
    if ((high & 0x1ff) == 0x1ff) {
        uint64_t more = (uint64_t)(((unsigned __int128)w * five[1]) >> 64);
        low += more;
        high += low < more;
    }
    if (low == UINT64_MAX && (q < -27 || q > 55)) return 0;
    int upper = (int)(high >> 63);
    int shift = upper + 64 - 52 - 3;
    uint64_t mantissa = high >> shift;
    int64_t power2 = (((152170 + 65536) * q) >> 16) + 63 + upper - zeros + 1023;
    if (power2 <= 0) return 0;
    if (low <= 1 && q >= -4 && q <= 23 && (mantissa & 3) == 1 && (mantissa << shift) == high) mantissa &= ~1ull;
    mantissa += mantissa & 1;
    mantissa >>= 1;
    if (mantissa >= (2ull << 52)) {
        mantissa = 1ull << 52;
        power2++;
    }
    if (power2 >= 0x7ff) return 0;
    bits = (mantissa & ~(1ull << 52)) | ((uint64_t)power2 << 52) | ((uint64_t)number->negative << 63);
    *out = as_double(bits);
    return 1;
}

static const uint8_t *literal(const uint8_t *p, const char *word) {
    while (*word)
        if (*p++ != (uint8_t)*word++) return 0;
    return p;
}

/* Behind any value; NULL: not well formed, with an escape, or too deep. */
static const uint8_t *skip(const uint8_t *p, int depth) {
    Number number;
    switch (*p) {
    case '"':
        p = text_end(p + 1);
        return p ? p + 1 : 0;
    case 't': return literal(p, "true");
    case 'f': return literal(p, "false");
    case 'n': return literal(p, "null");
    case '{':
    case '[': {
        uint8_t object = *p == '{', close = object ? '}' : ']';
        if (depth <= 0) return 0;
        p++;
        SPACE(p);
        if (*p == close) return p + 1;
        for (;;) {
            if (object) {
                if (*p != '"' || !(p = text_end(p + 1))) return 0;
                p++;
                SPACE(p);
                if (*p++ != ':') return 0;
                SPACE(p);
            }
            if (!(p = skip(p, depth - 1))) return 0;
            SPACE(p);
            if (*p == close) return p + 1;
            if (*p++ != ',') return 0;
            SPACE(p);
        }
    }
    default: return read_number(p, &number);
    }
}

/* So many digits; -1: they are not. */
static int digits(const uint8_t *p, int n) {
    int found = 0;
    for (; n; n--, p++) {
        if (!is_digit(*p)) return -1;
        found = found * 10 + (*p - '0');
    }
    return found;
}

/* A time by RFC 3339 in the form that everybody writes, `2026-11-23T15:34:34.123Z` or with an offset; behind its quotation mark, or NULL. */
static const uint8_t *read_time(const uint8_t *p, int64_t *ms) {
    static const uint8_t days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    int year, month, day, hour, minute, second, millis = 0, offset = 0;
    if ((year = digits(p, 4)) < 1970 || p[4] != '-' || (month = digits(p + 5, 2)) < 1 || month > 12 || p[7] != '-') return 0;
    int leap = month == 2 && year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    if ((day = digits(p + 8, 2)) < 1 || day > days[month - 1] + leap || p[10] != 'T') return 0;
    if ((hour = digits(p + 11, 2)) < 0 || hour > 23 || p[13] != ':' || (minute = digits(p + 14, 2)) < 0 || minute > 59) return 0;
    if (p[16] != ':' || (second = digits(p + 17, 2)) < 0 || second > 59) return 0;
    p += 19;
    if (*p == '.') {
        int n = 0;
        for (p++; is_digit(*p); p++, n++)
            if (n < 3) millis = millis * 10 + (*p - '0');
        if (n < 1 || n > 6) return 0;
        for (; n < 3; n++) millis *= 10;
    }
    if (*p == 'Z') {
        p++;
    } else {
        int hours, minutes, sign = *p == '+' ? 1 : *p == '-' ? -1 : 0;
        if (!sign || (hours = digits(p + 1, 2)) < 0 || hours > 23 || p[3] != ':' || (minutes = digits(p + 4, 2)) < 0 || minutes > 59) return 0;
        offset = sign * (hours * 60 + minutes);
        p += 6;
    }
    /* Days since 1970 of the proleptic Gregorian calendar, of years that begin in March. */
    int y = year - (month <= 2), m = month + (month > 2 ? -3 : 9);
    int64_t since = (int64_t)y * 365 + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719468;
    *ms = ((since * 1440 + hour * 60 + minute - offset) * 60 + second) * 1000 + millis;
    return *p == '"' ? p + 1 : 0;
}

static uint32_t hash(const uint8_t *p, uint32_t size, int32_t owner) {
    uint64_t h = 0x9e3779b97f4a7c15ull ^ size ^ ((uint64_t)(uint32_t)owner << 32);
    while (size >= 8) {
        uint64_t eight;
        memcpy(&eight, p, 8);
        h = (h ^ eight) * 0xff51afd7ed558ccdull;
        h ^= h >> 32;
        p += 8;
        size -= 8;
    }
    while (size--) h = (h ^ *p++) * 0x100000001b3ull;
    h *= 0xc4ceb9fe1a85ec53ull;
    return (uint32_t)(h >> 32);
}

static int is_name(const Plans *plans, int32_t i, const uint8_t *p, uint32_t size, int32_t owner) {
    return plans->owner[i] == owner && plans->size[i] == size && !memcmp(plans->text + plans->at[i], p, size);
}

static int32_t find(const Plans *plans, const uint8_t *p, uint32_t size, int32_t owner) {
    for (uint32_t slot = hash(p, size, owner) & plans->mask;; slot = (slot + 1) & plans->mask) {
        int32_t i = plans->table[slot];
        if (i < 0 || is_name(plans, i, p, size, owner)) return i;
    }
}

/* Enters every name into the table, which is -1 throughout and larger than the names are many. */
void driftline_index(const Plans *plans, int32_t *table, int32_t names) {
    for (int32_t i = 0; i < names; i++) {
        uint32_t slot = hash(plans->text + plans->at[i], plans->size[i], plans->owner[i]) & plans->mask;
        while (table[slot] >= 0) slot = (slot + 1) & plans->mask;
        table[slot] = i;
    }
}

/* A value of a kind into its cell; behind it, or NULL. */
static const uint8_t *read_cell(const Reader *r, const uint8_t *p, uint8_t kind, Cell *cell, uint8_t *tag) {
    Number number;
    const uint8_t *from, *end;
    int text = kind == NAME || kind == TEXTS;
    switch (*p) {
    case '"':
        if (!text) return 0;
        from = p + 1;
        if (!(end = text_end(from)) || end - from > r->bounds->text) return 0;
        cell->text.at = (uint32_t)(from - r->start);
        cell->text.size = (uint32_t)(end - from);
        *tag = TEXT;
        return end + 1;
    case 'n':
        *tag = MISSING;
        return literal(p, "null");
    case 't':
    case 'f':
        if (kind == NAME || kind == FLOAT) return 0;
        if (!(end = literal(p, *p == 't' ? "true" : "false"))) return 0;
        if (text) {
            cell->text.at = (uint32_t)(p - r->start);
            cell->text.size = (uint32_t)(end - p);
            *tag = TEXT;
        } else {
            cell->number = *p == 't';
            *tag = NUMBER;
        }
        return end;
    default:
        if (!(end = read_number(p, &number))) return 0;
        if (text) { /* the text of a whole number is how it is written */
            if (!number.zeros || (number.negative && !number.digits) || number.to - number.from > 15) return 0;
            if (!number.whole && kind == NAME) return 0;
            cell->text.at = (uint32_t)(number.from - r->start);
            cell->text.size = (uint32_t)(number.to - number.from);
            *tag = TEXT;
            return end;
        }
        /* As a text a large one has more digits than as a float, and -0 has no sign. */
        if (number.whole && (number.digits > (1ull << 53) || (number.negative && !number.digits))) return 0;
        if (!to_double(&number, r->powers, &cell->number)) return 0;
        *tag = NUMBER;
        return end;
    }
}

/* The fields of an object that the plan knows, into the row's cells; behind it, or NULL. `names` counts them all. */
static const uint8_t *read_fields(Reader *r, const uint8_t *p, int32_t owner, int64_t first, int32_t *names, int depth) {
    const Plans *plans = r->plans;
    int32_t last = -1;
    *names = 0;
    if (*p++ != '{') return 0;
    SPACE(p);
    if (*p == '}') return p + 1;
    for (;;) {
        const uint8_t *name = p + 1, *end;
        int32_t guess = last < 0 ? -1 : plans->follows[last], found;
        if (*p != '"') return 0;
        if (guess >= 0 && !memcmp(plans->text + plans->at[guess], name, plans->size[guess]) && name[plans->size[guess]] == '"') {
            end = name + plans->size[guess]; /* a field of this model without escapes, as guesses are */
            found = guess;
        } else {
            if (!(end = text_end(name))) return 0;
            found = find(plans, name, (uint32_t)(end - name), owner);
            if (found >= 0 && last >= 0) plans->follows[last] = found;
        }
        if (++*names > r->bounds->features) return 0;
        p = end + 1;
        SPACE(p);
        if (*p++ != ':') return 0;
        SPACE(p);
        if (found < 0) {
            if (!(p = skip(p, depth - 1))) return 0;
        } else {
            int64_t cell = first + plans->cell[found];
            if (!(p = read_cell(r, p, plans->kind[found], r->rows->cells + cell, r->rows->tags + cell))) return 0;
            last = found;
        }
        SPACE(p);
        if (*p == '}') return p + 1;
        if (*p++ != ',') return 0;
        SPACE(p);
    }
}

#define KEY(word) (size == sizeof(word) - 1 && !memcmp(name, word, sizeof(word) - 1))
#define ONCE(bit) if (seen & (1u << (bit))) return 0; seen |= 1u << (bit)

/* An event into the next row; behind it, or NULL. `depth` is what may be nested in it, itself included. */
static const uint8_t *read_event(Reader *r, const uint8_t *p, int32_t message, int depth) {
    const Plans *plans = r->plans;
    Rows *rows = r->rows;
    const uint8_t *later[2] = {0, 0}; /* features and tags that came before the model's name, and the outputs */
    const uint8_t *outputs[FIRST] = {0};
    uint32_t seen = 0;
    int32_t model = -1, names[2] = {0, 0};
    int64_t first = r->used, row = r->n;
    Number number;
    uint8_t kinds[FIRST] = {NAME, NAME, 0, FLOAT, FLOAT};
    int error = 0;
    if (row >= rows->max_rows || *p++ != '{') return 0;
    SPACE(p);
    if (*p == '}') return 0;
    for (;;) {
        const uint8_t *name = p + 1, *end;
        uint32_t size;
        int output = -1, part = -1;
        if (*p != '"' || !(end = text_end(name))) return 0;
        size = (uint32_t)(end - name);
        p = end + 1;
        SPACE(p);
        if (*p++ != ':') return 0;
        SPACE(p);
        if (KEY("id")) output = ID;
        else if (KEY("version")) output = VERSION;
        else if (KEY("prediction")) output = PREDICTION;
        else if (KEY("score")) output = SCORE;
        else if (KEY("latency_ms")) output = LATENCY;
        else if (KEY("features")) part = 0;
        else if (KEY("tags")) part = 1;
        if (output >= 0) {
            ONCE(output);
            outputs[output] = p;
            if (model >= 0) {
                int64_t cell = first + output;
                if (!(p = read_cell(r, p, kinds[output], rows->cells + cell, rows->tags + cell))) return 0;
            } else if (!(p = skip(p, depth - 1))) return 0;
        } else if (part >= 0) {
            ONCE(FIRST + part);
            if (*p == 'n') {
                p = literal(p, "null");
            } else if (*p != '{') {
                return 0;
            } else if (model >= 0) {
                p = read_fields(r, p, 2 * model + part, first, names + part, depth - 1);
            } else {
                later[part] = p;
                p = skip(p, depth - 1);
            }
            if (!p) return 0;
        } else if (KEY("ts")) {
            ONCE(8);
            if (*p == '"') {
                p = read_time(p + 1, rows->ts_ms + row);
            } else {
                if (!(p = read_number(p, &number)) || !number.whole || number.to - number.from > 18) return 0;
                rows->ts_ms[row] = number.negative ? -(int64_t)number.digits : (int64_t)number.digits;
            }
            if (!p) return 0;
            if (rows->ts_ms[row] < r->bounds->least_ms || rows->ts_ms[row] > r->bounds->most_ms) return 0;
        } else if (KEY("model")) {
            ONCE(9);
            if (*p != '"' || !(end = text_end(p + 1))) return 0;
            size = (uint32_t)(end - p - 1);
            model = r->model >= 0 && is_name(plans, r->model, p + 1, size, -1) ? r->model : find(plans, p + 1, size, -1);
            if (model < 0 || r->used + plans->cells[model] > rows->max_cells) return 0;
            r->model = model;
            memset(rows->tags + first, MISSING, (size_t)plans->cells[model]);
            kinds[PREDICTION] = plans->prediction[model];
            for (int i = 0; i < FIRST; i++) /* those that came before */
                if (outputs[i] && !read_cell(r, outputs[i], kinds[i], rows->cells + first + i, rows->tags + first + i)) return 0;
            for (int i = 0; i < 2; i++)
                if (later[i] && !read_fields(r, later[i], 2 * model + i, first, names + i, depth - 1)) return 0;
            p = end + 1;
        } else if (KEY("error")) {
            ONCE(10);
            error = *p != 'n';
            if (!(p = skip(p, depth - 1))) return 0;
        } else {
            if (KEY("prediction_id") || *name == '$') return 0; /* has a meaning of its own */
            if (!(p = skip(p, depth - 1))) return 0;
        }
        SPACE(p);
        if (*p == '}') break;
        if (*p++ != ',') return 0;
        SPACE(p);
    }
    if (model < 0 || !(seen & (1u << 8))) return 0;
    if (rows->tags[first + ID] == MISSING && plans->aliased[model]) return 0;
    if (!names[0] && !error && rows->tags[first + PREDICTION] == MISSING) return 0;
    rows->message[row] = message;
    rows->model[row] = model;
    rows->first[row] = first;
    rows->error[row] = (uint8_t)error;
    r->used += plans->cells[model];
    r->n++;
    return p + 1;
}

/* Rows of all messages that can be read. Of the others `rows_of` is 0, and no row remains. */
int64_t driftline_read(const uint8_t *start, const int64_t *begin, const int64_t *end, int32_t messages, const uint64_t *powers,
                       const Plans *plans, const Bounds *bounds, Rows *rows, int32_t *rows_of) {
    Reader r = {start, powers, plans, bounds, rows, 0, 0, -1};
    for (int32_t m = 0; m < messages; m++) {
        const uint8_t *p = start + begin[m], *stop = start + end[m];
        int64_t n = r.n, used = r.used;
        SPACE(p);
        if (*p == '{') {
            p = read_event(&r, p, m, bounds->depth);
        } else if (*p == '[') {
            p++;
            for (;;) {
                SPACE(p);
                if (!(p = read_event(&r, p, m, bounds->depth - 1))) break;
                SPACE(p);
                if (*p == ']') {
                    p++;
                    break;
                }
                if (*p++ != ',') {
                    p = 0;
                    break;
                }
            }
        } else {
            p = 0;
        }
        if (p) SPACE(p);
        if (p != stop) {
            r.n = n;
            r.used = used;
        }
        rows_of[m] = (int32_t)(r.n - n);
    }
    return r.n;
}

/* Columns of numbers: of each of `fields` n values, the bits that say where there is one (`stride` bytes of them), and how many are missing. */
void driftline_numbers(const Cell *cells, const uint8_t *tags, const int64_t *first, int64_t n, const int64_t *fields, int64_t n_fields, int64_t stride,
                       double *values, uint8_t *bits, int64_t *missing) {
    for (int64_t f = 0; f < n_fields; f++, values += n, bits += stride) {
        int64_t none = 0;
        memset(bits, 0, (size_t)stride);
        for (int64_t i = 0; i < n; i++) {
            int64_t at = first[i] + fields[f];
            int is = tags[at] == NUMBER;
            values[i] = is ? cells[at].number : as_double(0x7ff8000000000000ull);
            bits[i >> 3] |= (uint8_t)(is << (i & 7));
            none += !is;
        }
        missing[f] = none;
    }
}

/* Columns of texts, without their bytes: of each of `fields` n + 1 ends, from 0 on, and the rest as above. */
void driftline_ends(const Cell *cells, const uint8_t *tags, const int64_t *first, int64_t n, const int64_t *fields, int64_t n_fields, int64_t stride,
                    int32_t *ends, uint8_t *bits, int64_t *missing) {
    for (int64_t f = 0; f < n_fields; f++, ends += n + 1, bits += stride) {
        int64_t none = 0;
        int32_t end = 0;
        memset(bits, 0, (size_t)stride);
        for (int64_t i = 0; i < n; i++) {
            int64_t at = first[i] + fields[f];
            int is = tags[at] == TEXT;
            ends[i] = end;
            end += is ? (int32_t)cells[at].text.size : 0;
            bits[i >> 3] |= (uint8_t)(is << (i & 7));
            none += !is;
        }
        ends[n] = end;
        missing[f] = none;
    }
}

/* The bytes of these columns, behind each other. */
void driftline_texts(const uint8_t *start, const Cell *cells, const uint8_t *tags, const int64_t *first, int64_t n, const int64_t *fields,
                     int64_t n_fields, uint8_t *bytes) {
    for (int64_t f = 0; f < n_fields; f++) {
        for (int64_t i = 0; i < n; i++) {
            int64_t at = first[i] + fields[f];
            if (tags[at] != TEXT) continue;
            memcpy(bytes, start + cells[at].text.at, cells[at].text.size);
            bytes += cells[at].text.size;
        }
    }
}
