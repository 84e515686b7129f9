// Widgets look for JupyterLab's theme first: tell them the site's, now and whenever it changes.
const tellWidgets = () => { document.body.dataset.jpThemeLight = String(document.documentElement.dataset.theme !== "dark"); };
new MutationObserver(tellWidgets).observe(document.documentElement, { attributeFilter: ["data-theme"] });
tellWidgets();
