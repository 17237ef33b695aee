/** The reference at /docs: Swagger UI on this service's own description, with nothing from elsewhere. */

const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();

globalThis.SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#reference",
  deepLinking: true,
  defaultModelsExpandDepth: -1,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  validatorUrl: null, // else it would ask a server on the internet
  requestInterceptor(request) {
    const key = sessionStorage.getItem("vae-key"); // entered on the page at / in this tab
    if (key) request.headers.Authorization ??= `Bearer ${key}`;
    return request;
  },
});
