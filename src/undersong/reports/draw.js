(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const value = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const config = () => {
    const ink = value("--ink"), muted = value("--muted"), line = value("--line");
    const font = getComputedStyle(document.body).fontFamily;
    return {
      background: "transparent", font, view: { stroke: null },
      axis: { labelColor: ink, titleColor: muted, gridColor: line, domainColor: line, tickColor: line,
              labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" },
      axisY: { grid: false },
      legend: { labelColor: ink, titleColor: muted, labelFontSize: 12, symbolStrokeWidth: 0 },
      rule: { color: muted }, text: { color: ink },
      range: { category: ["--trait", "--control", "--reference"].map(value) },
    };
  };
  const draw = async (figure) => {
    const spec = JSON.parse(document.getElementById(figure.dataset.spec).textContent);
    try {
      await vegaEmbed(figure, spec, {
        mode: "vega-lite", renderer: "svg", actions: false, ast: true, config: config(),
        tooltip: { theme: dark.matches ? "dark" : "light" },
      });
      figure.dataset.drawn = "yes";
    } catch (error) {
      figure.textContent = "This figure could not be drawn. The tables of this page hold the same numbers.";
      console.error(error);
    }
  };
  const all = () => [...document.querySelectorAll(".chart")];
  const visible = (figure) => figure.closest("details:not([open])") === null;
  const drawMissing = () => all().filter((f) => visible(f) && !f.dataset.drawn).forEach(draw);
  document.querySelectorAll("details").forEach((d) => d.addEventListener("toggle", drawMissing));
  dark.addEventListener("change", () => all().filter((f) => f.dataset.drawn).forEach(draw));
  drawMissing();
})();
