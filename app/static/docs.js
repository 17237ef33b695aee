/** The reference at /docs: Swagger UI on this service's own description. */

document.documentElement.classList.toggle("dark-mode", matchMedia("(prefers-color-scheme: dark)").matches);
SwaggerUIBundle({
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
