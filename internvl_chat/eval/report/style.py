"""Rules and script of the report; the script filters cards and is the only one that the page lets run."""

STYLE = """
main { max-width: 1400px; }
table.scores { border-collapse: collapse; width: 100%; }
.scores th, .scores td { text-align: left; vertical-align: top; padding: 7px 14px 7px 0;
  border-top: 1px solid var(--rule); font-variant-numeric: tabular-nums; }
.scores thead th { border-top: 0; color: var(--soft); font-weight: 600; }
.scores tbody th { font-weight: 400; min-width: 8em; overflow-wrap: break-word; }
.scores th small, .scores td small { display: block; color: var(--soft); font-size: .82rem; }
.scores b { font-weight: 600; }
.scores a { color: inherit; text-decoration-color: var(--soft); }
.scores .empty { color: var(--soft); }
.partial { display: inline-block; color: var(--bad); background: var(--bad-soft); border-radius: 5px; padding: 0 7px;
  font-size: .85rem; font-weight: 600; }
.scores .weak b { font-weight: 400; color: var(--soft); }
.scores small.far { color: var(--bad); }
.scores small.near { color: var(--good); }
.warn { color: var(--bad); }
details.run { border-top: 1px solid var(--rule); padding: 8px 0; }
details.run:first-of-type { border-top: 0; }
details.run > summary { cursor: pointer; overflow-wrap: anywhere; }
details.run > div { padding: 8px 0 8px 18px; }
details.run > div { overflow-x: auto; }
details.run table { margin: 0 0 12px; max-width: 760px; }
pre { background: var(--page); border-radius: 8px; padding: 12px; margin: 8px 0 0; max-height: 420px; overflow: auto;
  font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.tools { display: flex; flex-wrap: wrap; gap: 12px; align-items: center; margin: 0 0 16px; position: sticky; top: 0;
  background: var(--card); padding: 8px 0; z-index: 1; }
.tools select, .tools input { font: inherit; color: var(--ink); background: var(--page); padding: 6px 10px;
  border: 1px solid var(--rule); border-radius: 8px; max-width: 100%; }
.tools input { flex: 1 1 240px; min-width: 0; }
.tools output { color: var(--soft); font-variant-numeric: tabular-nums; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 260px), 1fr)); gap: 16px; }
.card { display: flex; flex-direction: column; min-width: 0; border: 1px solid var(--rule); border-radius: 10px;
  overflow: hidden; content-visibility: auto; contain-intrinsic-size: 260px 320px; }
.card[hidden] { display: none; }
.shown { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; justify-content: center; min-height: 120px;
  padding: 8px; background: var(--page); color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; }
.shown img { min-width: 0; max-width: 100%; max-height: 240px; border-radius: 4px; object-fit: contain; }
.shown span { min-width: 0; }
.words { padding: 10px 12px 12px; overflow-wrap: anywhere; }
.words p { margin: 0 0 8px; white-space: pre-line; max-height: 14em; overflow: auto; }
.words p:last-child { margin: 0; }
.words .where, .words .question { color: var(--soft); font-size: .85rem; }
.words .answer { color: var(--bad); background: var(--bad-soft); border-radius: 6px; padding: 5px 9px; }
.words .gold { color: var(--good); background: var(--good-soft); border-radius: 6px; padding: 5px 9px; }
.words .answer::before, .words .gold::before { display: block; font-size: .78rem; opacity: .8; }
.words .answer::before { content: "answer"; } .words .gold::before { content: "gold"; }
"""

SCRIPT = """
(() => {
  const run = document.getElementById("run"), text = document.getElementById("text");
  const count = document.getElementById("count");
  const cards = [...document.querySelectorAll(".card")];
  const words = cards.map(card => card.textContent.toLowerCase());
  const filter = () => {
    const wanted = text.value.toLowerCase().split(/\\s+/).filter(Boolean);
    let shown = 0;
    cards.forEach((card, place) => {
      const good = (!run.value || card.dataset.run === run.value || card.dataset.task === run.value)
        && wanted.every(word => words[place].includes(word));
      card.hidden = !good;
      shown += good;
    });
    count.textContent = `${shown} of ${cards.length}`;
  };
  run.addEventListener("change", filter);
  text.addEventListener("input", filter);
  document.querySelectorAll(".scores a").forEach(link => link.addEventListener("click", () => {
    const there = document.getElementById(link.hash.slice(1));
    if (there) there.open = true;
  }));
  filter();
})();
"""
