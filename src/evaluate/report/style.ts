/**
 * The style sheet of a report.
 *
 * @module
 */

/** Colors of lines on white, one per policy; then on dark. */
const LIGHT = [
  "#0969c3",
  "#c8324a",
  "#1d8a4c",
  "#9a6700",
  "#7b45c6",
  "#0a7f88",
  "#bd5215",
  "#59636e",
];
const DARK = [
  "#58b0f6",
  "#ff8090",
  "#56d08c",
  "#e0b341",
  "#bb9af5",
  "#4bd0d6",
  "#f49a5c",
  "#a8b3c0",
];

function variables(colors: readonly string[]): string {
  return colors.map((color, i) => `--color-${i}:${color}`).join(";");
}

/** CSS of a report; it needs nothing from elsewhere. */
export const STYLE: string = `
:root{color-scheme:light dark;--background:#fff;--card:#f6f8fa;--text:#1c2128;
--muted:#59636e;--line:#d1d9e0;--grid:#e6eaef;--heat-low:#f7ece6;
--heat-high:#0969c3;--on-low:#1c2128;--on-high:#fff;--better:#d8f3e1;
--worse:#fbe3e4;${variables(LIGHT)}}
@media (prefers-color-scheme:dark){:root{--background:#0f1318;--card:#171c23;
--text:#e6eaf0;--muted:#9aa5b1;--line:#333c47;--grid:#232a33;--heat-low:#262c34;
--heat-high:#58b0f6;--on-low:#e6eaf0;--on-high:#0f1318;--better:#163d27;
--worse:#4a2027;${variables(DARK)}}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1080px;padding:24px 20px 64px;color:var(--text);
background:var(--background);font:15px/1.5 system-ui,sans-serif}
h1{margin:0 0 4px;font-size:26px}
h2{margin:44px 0 4px;padding-top:16px;border-top:2px solid var(--line);
font-size:21px}
h3{margin:30px 0 6px;font-size:17px}
h4{margin:18px 0 6px;font-size:15px}
p{max-width:76ch;margin:6px 0}
a{color:var(--color-0)}
small,.note{color:var(--muted)}
small{font-size:12px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 16px}
dt{color:var(--muted)}
dd{margin:0}
nav ul{display:flex;flex-wrap:wrap;gap:4px 18px;padding:0;list-style:none}
.scroll{overflow-x:auto;margin:10px 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px}
th,td{padding:4px 12px;border-bottom:1px solid var(--grid);text-align:right;
white-space:nowrap}
thead th{border-bottom:1px solid var(--line);color:var(--muted);font-weight:600;
vertical-align:bottom}
th.name,td.name{position:sticky;left:0;background:var(--background);
text-align:left}
.matrix th,.matrix td{padding:3px 10px}
.matrix small{display:block;line-height:1.2}
h3::first-letter{text-transform:uppercase}
tr.first td{border-top:2px solid var(--line)}
td.best{font-weight:700}
td.best small{font-weight:400}
td.better{background:var(--better)}
td.worse{background:var(--worse)}
figure{margin:14px 0;padding:12px;border:1px solid var(--line);
border-radius:8px;background:var(--card)}
figure svg{display:block;width:100%;height:auto}
figure>svg{margin:0 auto}
figure.small>svg{margin:0}
.gallery{display:grid;gap:12px;
grid-template-columns:repeat(auto-fill,minmax(250px,1fr))}
.gallery+.gallery{margin-top:24px}
.gallery figure{margin:0}
figure.small>figcaption{margin-bottom:6px;font-size:13px;font-weight:600}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;justify-content:center;
margin-top:8px;font-size:13px}
.legend span{display:inline-flex;align-items:center;gap:6px}
.legend .swatch{width:28px;height:12px}
details{margin:10px 0}
summary{cursor:pointer;color:var(--muted)}
svg text{fill:var(--text);font:12px system-ui,sans-serif}
svg .tick{fill:var(--muted);font-size:11px}
svg .axis{fill:var(--muted);font-size:12px}
svg .grid{stroke:var(--grid)}
svg .frame{stroke:var(--line)}
svg .baseline{stroke:var(--muted);stroke-width:1.5;stroke-dasharray:2 3}
svg .series{stroke:var(--color);fill:var(--color)}
svg .series polyline{fill:none;stroke-width:1.8}
svg .series .error{stroke-width:1.2;opacity:.55}
svg .series text{stroke:none;fill:var(--muted)}
svg .series .bar{stroke:none}
svg .dashes-1 polyline{stroke-dasharray:7 4}
svg .dashes-2 polyline{stroke-dasharray:2 4}
svg .heat{fill:color-mix(in oklab,var(--heat-high) var(--share),var(--heat-low))}
svg .on-low{fill:var(--on-low)}
svg .on-high{fill:var(--on-high)}
${LIGHT.map((_, i) => `.color-${i}{--color:var(--color-${i})}`).join("\n")}
@media print{body{max-width:none}figure,tr{break-inside:avoid}}
`;
