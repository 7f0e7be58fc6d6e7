// The page of `sr3 demo`. The server tells it what changes, by one stream of events.
const $ = (id) => document.getElementById(id);
const bytes = crypto.getRandomValues(new Uint8Array(16));
const page = Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
let file = null, state = null, zoom = 0, shown = { left: "input", right: "" }, isSending = false, wasChosen = false;

const stream = new EventSource(`/events?page=${page}`);
stream.onmessage = (event) => {
  const told = JSON.parse(event.data);
  if (told.about) introduce(told.about);
  if ("state" in told) {
    const isLost = state && !told.state;
    state = told.state;
    show();
    if (isLost) say("The server was started anew, or waited too long for this page. Please send the picture again.", true);
  }
};
// A page that is left ends its work; the back button loads it anew.
addEventListener("pagehide", () => stream.close());
addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
stream.onerror = () => say("The connection to the server is lost; the page tries again.", true);

function introduce(about) {
  $("about").textContent = about.text;
  if (!$("steps").value) $("steps").value = about.steps;
  $("steps").readOnly = about.fixed;
  $("steps").title = about.fixed ? "This network was trained for this number of calls." : "";
  if (!state) say("");
  enable();
}

function say(text, isWrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", isWrong);
}

function choose(chosen) {
  if (!chosen) return;
  file = chosen;
  $("chosen").textContent = file.name;
  enable();
}

function isBusy() { return isSending || ["waiting", "running"].includes(state?.status); }

function enable() {
  $("start").disabled = !file || isBusy();
  $("stop").disabled = !isBusy() || isSending;
}

$("file").onchange = () => choose($("file").files[0]);
for (const name of ["dragover", "drop", "dragleave"]) {
  addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") choose(event.dataTransfer.files[0]);
  });
}

$("controls").onsubmit = async (event) => {
  event.preventDefault();
  if (!file || isBusy()) return;
  isSending = true;
  wasChosen = false;
  enable();
  say("Sending the picture …");
  const asked = new URLSearchParams({
    page, name: file.name, steps: $("steps").value, seed: $("seed").value, samples: $("samples").value,
  });
  await post(`/upscale?${asked}`, file);
  isSending = false;
  enable();
};
$("stop").onclick = () => post(`/stop?page=${page}`);

async function post(path, body) {
  try {
    const answer = await fetch(path, { method: "POST", body, headers: { "x-sr3": "1" } });
    const told = await answer.json();
    if (told.error) { state = null; show(); say(told.error, true); }
  } catch {
    say("The picture could not be sent: the server does not answer, or the file has changed.", true);
  }
}

function seconds(number) {
  if (number < 90) return `${Math.round(number)} s`;
  return `${Math.floor(number / 60)} min ${Math.round(number % 60)} s`;
}

function show() {
  $("work").hidden = !isBusy();
  $("files").replaceChildren();
  enable();
  if (!state) { $("viewer").hidden = true; return; }
  const { status, share, ahead, message } = state;
  if (share > 0 || status !== "running") $("bar").value = share; else $("bar").removeAttribute("value");
  if (status === "waiting") say(`Waiting: ${ahead} before this one.`);
  if (status === "running") {
    const left = share > 0.02 ? `, about ${seconds(state.seconds * (1 / share - 1))} left` : "";
    say(share > 0 ? `${Math.round(100 * share)} %, ${seconds(state.seconds)}${left}` : "Reading, and compiling the network …");
  }
  if (status === "stopped") say("Stopped.");
  if (status === "failed") say(message, true);
  if (status === "done") {
    say([`${state.size[0]}×${state.size[1]} pixels in ${seconds(state.seconds)}.`, message].filter(Boolean).join(" "));
  }
  state.files.forEach((name, number) => {
    const link = document.createElement("a");
    link.href = `/download/${page}/${number}`;
    link.download = "";
    const several = state.files.length > 1 ? `, seed ${state.seed + number}` : "";
    link.textContent = `Download ${name}${several}`;
    const item = document.createElement("li");
    item.append(link);
    $("files").append(item);
  });
  view();
}

function view() {
  const names = Object.keys(state.views);
  $("viewer").hidden = !names.length;
  if (!names.length) return;
  const best = ["result", "sample 1", "refinement", "bicubic", "input"].find((name) => name in state.views);
  if (!wasChosen || !(shown.right in state.views)) shown.right = best;
  if (!(shown.left in state.views)) shown.left = "bicubic" in state.views ? "bicubic" : names[0];
  for (const side of ["left", "right"]) {
    const list = $(side);
    if (Array.from(list.options, (option) => option.value).join() !== names.join()) {
      list.replaceChildren(...names.map((name) => new Option(name)));
    }
    list.value = shown[side];
    const image = $(`image_${side}`), path = `/view/${page}/${state.views[shown[side]]}`;
    if (image.getAttribute("src") !== path) image.src = path;
    image.alt = `${shown[side]}, on the ${side}`;
    image.classList.toggle("source", shown[side] === "input");
  }
  $("legend").hidden = !Object.values(shown).includes("deviation");
  resize();
}

for (const side of ["left", "right"]) {
  $(side).onchange = () => { shown[side] = $(side).value; wasChosen = true; view(); };
}

// One pixel of the result is one of the screen at 100 %, whatever the browser calls a pixel.
function resize() {
  if (!state?.size[0]) return;
  const [width, height] = state.size, scroll = $("scroll"), ratio = devicePixelRatio;
  const fit = Math.min(scroll.clientWidth / width, scroll.clientHeight / height);
  const by = zoom ? zoom / ratio : Math.min(fit, 8);
  $("canvas").style.width = `${width * by}px`;
  $("canvas").style.height = `${height * by}px`;
  $("canvas").classList.toggle("sharp", by * ratio >= 1);
}
addEventListener("resize", resize);
for (const button of $("zooms").children) {
  button.onclick = () => {
    const scroll = $("scroll"), x = (scroll.scrollLeft + scroll.clientWidth / 2) / scroll.scrollWidth;
    const y = (scroll.scrollTop + scroll.clientHeight / 2) / scroll.scrollHeight;
    zoom = Number(button.dataset.zoom);
    for (const other of $("zooms").children) other.setAttribute("aria-pressed", other === button);
    resize();
    scroll.scrollLeft = x * scroll.scrollWidth - scroll.clientWidth / 2;
    scroll.scrollTop = y * scroll.scrollHeight - scroll.clientHeight / 2;
  };
}

function split(share) {
  $("split").value = 1000 * share;
  $("canvas").style.setProperty("--split", `${100 * share}%`);
}
split(0.5);
$("split").oninput = () => split($("split").value / 1000);
$("line").onpointerdown = (event) => { $("line").setPointerCapture(event.pointerId); event.preventDefault(); };
$("line").onpointermove = (event) => {
  if (!$("line").hasPointerCapture(event.pointerId)) return;
  const box = $("canvas").getBoundingClientRect();
  split(Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1));
};
