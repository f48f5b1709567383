// The API's own description in Swagger UI, which is served from here: nothing comes from elsewhere. The key is the one that the page has.

const login = document.getElementById("login");

function credential() {
  const key = sessionStorage.getItem("driftline-key");
  if (!key) return {};
  return key.split(".").length === 3 ? { Authorization: `Bearer ${key}` } : { "X-API-Key": key };
}

async function open() {
  const answer = await fetch("api/v1/openapi.json", { headers: credential() });
  login.hidden = answer.status !== 401;
  if (!answer.ok) return;
  SwaggerUIBundle({
    spec: { ...(await answer.json()), servers: [{ url: new URL(".", location.href).pathname.replace(/\/$/, "") || "/" }] },
    dom_id: "#ui",
    deepLinking: true,
    validatorUrl: null,
    requestInterceptor: (request) => ({ ...request, headers: { ...credential(), ...request.headers } }),
  });
}

login.addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("driftline-key", document.getElementById("key").value);
  open();
});
open();
