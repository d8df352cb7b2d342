// Style sheet of the report: light and dark, without external fonts or images.
export const STYLE = `
:root { color-scheme: light dark; --ink: light-dark(#1c2430, #e6e9ee);
  --soft: light-dark(#5b6675, #9aa5b4); --line: light-dark(#dde2e8, #333c48);
  --paper: light-dark(#ffffff, #161b22); --panel: light-dark(#f6f8fa, #1d242d); --good: #3f8fcf;
  --bad: #d9482b; --pixel: #7a52c7; --mark: light-dark(#1c2430, #ffffff); }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 1.5rem 1.25rem 4rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { max-width: 80ch; } .soft { color: var(--soft); } code { font-size: .92em; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .45rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th { color: var(--soft); font-weight: 600; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; } tfoot td { font-weight: 700; border-bottom: 0; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 1rem; }
.panel { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: .75rem; }
.chart { width: 100%; height: auto; display: block; }
.chart text { font: 10px system-ui, sans-serif; fill: var(--soft); } .chart .label { font-size: 11px; }
.grid { stroke: var(--line); stroke-width: 1; } .chance { stroke: var(--soft); stroke-dasharray: 3 4; }
.curve { fill: none; stroke-width: 2; } .s-image { stroke: var(--bad); } .s-pixel { stroke: var(--pixel); }
.b-good { fill: var(--good); fill-opacity: .6; } .b-defective { fill: var(--bad); fill-opacity: .6; }
.m-threshold { stroke: var(--mark); stroke-width: 2; }
.m-f1max { stroke: var(--mark); stroke-width: 1.5; stroke-dasharray: 5 4; }
.key { display: flex; flex-wrap: wrap; gap: .4rem 1.1rem; color: var(--soft); font-size: .88rem;
  margin: .3rem 0; }
.key i { display: inline-block; width: 1.1em; height: .75em; margin-right: .4em; border-radius: 2px;
  vertical-align: -.05em; }
.case { display: grid; grid-template-columns: minmax(150px, 230px) repeat(3, minmax(0, 1fr)); gap: .75rem;
  align-items: start; padding: .75rem 0; border-bottom: 1px solid var(--line); }
.case dl { margin: 0; font-size: .9rem; display: grid; grid-template-columns: auto 1fr; gap: 0 .6rem; }
.case dt { color: var(--soft); } .case dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 0; } figure svg { width: 100%; height: auto; border-radius: 6px; display: block; }
figcaption { color: var(--soft); font-size: .82rem; }
.contour { fill: none; stroke: #00e5ff; stroke-width: 2; vector-effect: non-scaling-stroke; }
.ramp { height: .8rem; width: 260px; max-width: 100%; border-radius: 3px; }
.ends { display: flex; justify-content: space-between; width: 260px; max-width: 100%; color: var(--soft);
  font-size: .82rem; }
@media (max-width: 760px) { .case { grid-template-columns: 1fr 1fr 1fr; }
.case > div:first-child { grid-column: 1 / -1; } }
`;
