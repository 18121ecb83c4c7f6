"use strict";
// Draw each figure from the JSON beside it. Colors of text and grid come from report.css, so both themes work.
const coarse = matchMedia("(pointer: coarse)").matches;
const plots = [];
for (const box of document.querySelectorAll(".plot")) {
  const figure = JSON.parse(box.nextElementSibling.textContent);
  if (coarse) figure.layout.dragmode = false; // a finger scrolls the page
  Plotly.newPlot(box, figure.data, figure.layout, {
    responsive: true,
    displaylogo: false,
    displayModeBar: coarse ? false : "hover",
    modeBarButtons: [["toImage", "resetScale2d"]],
  });
  plots.push(box);
}
const fit = () => plots.forEach((box) => Plotly.Plots.resize(box));
addEventListener("beforeprint", fit);
addEventListener("afterprint", fit);
