"use strict";
const root = document.documentElement;

// Theme: the system's, unless ?theme= or the button says otherwise.
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const themeButton = document.getElementById("theme");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);
const nameTheme = () => {
  themeButton.textContent = isDark() ? "Light" : "Dark";
  themeButton.setAttribute("aria-label", `Use the ${isDark() ? "light" : "dark"} theme`);
};
const asked = new URLSearchParams(location.search).get("theme");
if (asked === "dark" || asked === "light") root.dataset.theme = asked;
themeButton.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  nameTheme();
});
systemDark.addEventListener("change", nameTheme);
nameTheme();

// Cover and uncover all texts of a section at once.
for (const button of document.querySelectorAll("button.uncover")) {
  const veils = button.closest("section").querySelectorAll("details.veil");
  const show = button.textContent;
  button.addEventListener("click", () => {
    const open = button.textContent === show;
    button.textContent = open ? "Cover all again" : show;
    for (const veil of veils) veil.open = open;
  });
}

// Charts. The expression interpreter ("ast") lets the page's policy forbid eval.
for (const chart of document.querySelectorAll(".chart")) {
  const spec = JSON.parse(document.getElementById(chart.dataset.spec).textContent);
  vegaEmbed(chart, spec, {
    mode: "vega-lite", renderer: "svg", actions: false, ast: true, tooltip: { theme: "custom" },
  });
}
