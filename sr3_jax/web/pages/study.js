// The page of `sr3 study serve`. The server says which trials are left, and keeps each answer before the
// next pair is shown; so the page may be loaded again at any time.
const $ = (id) => document.getElementById(id);
const address = new URLSearchParams(location.search).get("code");
const withCode = (path) => (address ? `${path}?code=${encodeURIComponent(address)}` : path);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));
const SECONDS_OF_REST = 0.4; // between pairs
const GAP = 16; // CSS pixels between pictures

function element(tag, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

// Asks the server until it answers: an answer is never lost with the connection.
async function ask(path, body) {
  for (let wait = 500; ; wait = Math.min(2 * wait, 8000)) {
    try {
      const answer = await fetch(withCode(path), {
        method: body ? "POST" : "GET",
        headers: { "x-sr3": "1", "content-type": "application/json" },
        body: body && JSON.stringify(body),
        signal: AbortSignal.timeout(15000),
      });
      if (answer.status < 500) {
        notice("");
        return await answer.json();
      }
    } catch { /* no connection: asked again */ }
    notice("The connection is lost. Your last answer is kept here and sent as soon as it is back.");
    await pause(wait);
  }
}

// A text with one button.
class Text {
  static info = { name: "text", version: "1", parameters: { heading: {}, paragraphs: {}, button: {} }, data: {} };
  constructor(jsPsych) { this.jsPsych = jsPsych; }
  trial(display, { heading, paragraphs, button }) {
    const go = element("button", { type: "button", textContent: button });
    const text = paragraphs.map((paragraph) => element("p", { textContent: paragraph }));
    display.replaceChildren(element("section", { className: "text" }, element("h1", { textContent: heading }), ...text, go));
    go.onclick = () => { go.disabled = true; this.jsPsych.finishTrial({}); };
    go.focus();
  }
}

// A pair of pictures, and the answer, kept by the server before the trial ends.
class Pair {
  static info = { name: "pair", version: "1", parameters: { shown: {}, study: {} }, data: {} };
  constructor(jsPsych) { this.jsPsych = jsPsych; }
  trial(display, { shown, study }) { this.run(display, shown, study); }

  async run(display, shown, study) {
    const pictures = {};
    for (const side of ["left", "middle", "right"]) {
      if (shown[side]) pictures[side] = await picture(shown, side, study.scale);
    }
    const live = element("p", { className: "answer", role: "status" });
    const count = shown.isPractice ? "Practice" : `${shown.number + 1} of ${study.numTrials}`;
    const parts = ["left", "middle", "right"].filter((side) => pictures[side]).map((side) => pictures[side].root);
    const root = element("div", { className: "pair" }, ...parts);
    const width = pictures.left.width;
    const arrange = () => {
      notice(document.documentElement.clientWidth < needed(study) ? "Your window is too narrow for the pictures." : "");
      const columns = pictures.middle && innerWidth >= 3 * width + 4 * GAP ? 3 : 2;
      root.classList.toggle("three", columns === 3);
      root.classList.toggle("above", columns === 2 && Boolean(pictures.middle));
      if (columns === 2 && pictures.middle) root.insertBefore(pictures.middle.root, pictures.left.root);
      else if (pictures.middle) root.insertBefore(pictures.middle.root, pictures.right.root);
      Object.values(pictures).forEach(({ box }) => snap(box));
    };
    addEventListener("resize", arrange);
    display.replaceChildren(element("section", { className: "trial" }, element("p", { textContent: study.question }), root, live,
      element("p", { className: "count", textContent: count })));
    arrange();
    await pause(1000 * SECONDS_OF_REST);
    const images = Object.values(pictures).map((one) => one.image);

    // From the frame that shows the pictures to the one that does not.
    images.forEach((image) => image.classList.remove("hidden"));
    const begin = await frame();
    let end = null;
    const hide = async () => {
      images.forEach((image) => image.classList.add("hidden"));
      const at = await frame();
      end ??= at;
    };
    if (study.seconds) setTimeout(() => { if (end === null) hide(); }, 1000 * study.seconds);
    live.textContent = study.seconds ? "" : "Take your time.";
    const { side, at } = await answer(pictures);
    if (end === null) await hide();
    removeEventListener("resize", arrange);
    const kept = await ask("/answer", {
      trial: shown.number, side, shown_ms: Math.max(0, end - begin), answered_ms: Math.max(0, at - begin),
    });
    if (kept.error) return stop(kept.error);
    // Answered in another window: the server knows what is next.
    if (!kept.is_kept) return location.reload();
    if (shown.isPractice) {
      live.textContent = side === shown.expected ? "Yes, that is the photograph." : "No, the other one is the photograph.";
      await pause(1500);
    }
    this.jsPsych.finishTrial({});
  }
}

// A pixel of a picture is a whole number of pixels of the screen, whatever the browser calls a pixel.
async function picture(shown, side, scale) {
  const by = (scale * Math.max(1, Math.round(devicePixelRatio))) / devicePixelRatio;
  const name = { left: "Left picture", right: "Right picture", middle: "Low resolution" }[side];
  const image = element("img", { src: shown[side], alt: name, className: "hidden" });
  await image.decode();
  const box = element("div", { className: "frame" }, image);
  box.style.width = `${shown.width * by}px`;
  box.style.height = `${shown.height * by}px`;
  const root = element("div", { className: `picture ${side}` }, box);
  const button = element("button", { type: "button", textContent: side === "left" ? "Left (←)" : "Right (→)" });
  button.setAttribute("aria-keyshortcuts", side === "left" ? "ArrowLeft" : "ArrowRight");
  if (side !== "middle") root.append(button);
  return { root, image, button, box, width: shown.width * by };
}

// Moves a box to whole pixels of the screen; else rows are doubled or dropped where a pixel of the browser is
// not a whole number of them.
function snap(box) {
  box.style.left = box.style.top = "0px";
  const { left, top } = box.getBoundingClientRect(), ratio = devicePixelRatio;
  let step = 1; // CSS pixels that are a whole number of the screen's; at last one pixel of the screen
  while (step <= 16 && Math.abs(step * ratio - Math.round(step * ratio)) > 1e-3) step += 1;
  if (step > 16) step = 1 / ratio;
  const off = (at) => `${Math.round(at / step) * step - at}px`;
  box.style.left = off(left + scrollX);
  box.style.top = off(top + scrollY);
}

// CSS pixels that two pictures beside each other need.
function needed(study) {
  const by = (study.scale * Math.max(1, Math.round(devicePixelRatio))) / devicePixelRatio;
  return Math.ceil(2 * by * Math.max(...study.trials.map((one) => one.width)) + 3 * GAP);
}

function answer(pictures) {
  return new Promise((resolve) => {
    const listening = new AbortController();
    const choose = (side) => (event) => {
      event.preventDefault();
      listening.abort();
      // The time of the event itself, not of its handling.
      resolve({ side, at: event.timeStamp });
    };
    for (const side of ["left", "right"]) {
      for (const target of [pictures[side].box, pictures[side].button]) {
        target.addEventListener("click", choose(side), { signal: listening.signal });
      }
    }
    addEventListener("keydown", (event) => {
      const side = { ArrowLeft: "left", ArrowRight: "right" }[event.key];
      if (side && !event.repeat && !event.ctrlKey && !event.altKey && !event.metaKey) choose(side)(event);
    }, { signal: listening.signal });
  });
}

function stop(text) {
  $("withdraw").hidden = true;
  $("stage").replaceChildren(element("section", { className: "text" }, element("p", { textContent: text })));
}

// Waits until two pictures fit beside each other.
async function wait(study) {
  while (document.documentElement.clientWidth < needed(study)) {
    stop(`Your window is ${document.documentElement.clientWidth} pixels wide, and the pictures need ${needed(study)}. ` +
      "Make it wider, turn your telephone, or use a larger screen.");
    $("withdraw").hidden = false;
    await new Promise((resolve) => addEventListener("resize", resolve, { once: true }));
  }
}

function begin(study) {
  return new Promise((resolve) => {
    const agree = element("button", { type: "button", textContent: "I agree, and begin" });
    $("stage").replaceChildren(element("section", { className: "text" },
      element("h1", { textContent: study.title }), element("p", { textContent: study.consent }), agree));
    agree.onclick = async () => {
      agree.disabled = true;
      resolve(await ask("/begin", { width: innerWidth, height: innerHeight, ratio: devicePixelRatio }));
    };
  });
}

function timeline(study) {
  const how = study.seconds
    ? `Each pair is shown for ${study.seconds} seconds. You may answer as soon as it appears, or after it is gone.`
    : "Each pair is shown until you answer.";
  const pages = [{
    type: Text, heading: study.title, button: study.next ? "Go on" : "Begin",
    paragraphs: [study.question, how,
      "Press the left or right arrow key, or tap a picture or its button. Please answer every time; if you are not sure, guess.",
      study.trials[0].isPractice ? "The first pairs are for practice." : "",
      study.hasChecks ? "A few pairs are easy, to see whether people look." : ""].filter(Boolean),
  }];
  let sinceRest = 0;
  for (const shown of study.trials) {
    if (study.breakEvery && sinceRest >= study.breakEvery) {
      pages.push({ type: Text, heading: "A rest", paragraphs: ["Rest your eyes as long as you like."], button: "Go on" });
      sinceRest = 0;
    }
    pages.push({ type: Pair, shown, study });
    sinceRest += 1;
  }
  return pages;
}

async function main() {
  let study = await ask("/session");
  if (study.error) return stop(study.error);
  document.title = study.title;
  if (study.isWithdrawn) return stop("Your answers were withdrawn. Thank you for your time.");
  if (study.isOver) {
    stop("This study is over. Thank you for your interest.");
    $("withdraw").hidden = !study.hasBegun;
    return;
  }
  if (!study.isInvited) return stop("This study is for invited people. Please use the address that you were sent.");
  if (!study.hasBegun) study = await begin(study);
  if (study.error) return stop(study.error);
  $("withdraw").hidden = false;
  if (study.trials.length) {
    await wait(study);
    $("stage").replaceChildren();
    const jsPsych = initJsPsych({ display_element: "stage" });
    const files = study.trials.flatMap((one) => [one.left, one.right, one.middle].filter(Boolean));
    notice("Loading the pictures …");
    await new Promise((resolve, reject) => jsPsych.pluginAPI.preloadImages([...new Set(files)], resolve, () => {}, reject));
    notice("");
    await jsPsych.run(timeline(study));
  }
  $("withdraw").textContent = "Withdraw my answers";
  $("stage").replaceChildren(element("section", { className: "text" }, element("h1", { textContent: "Thank you" }),
    element("p", { textContent: "All your answers are kept. You may close this window." })));
}

$("withdraw").onclick = async () => {
  if (!confirm("Withdraw all your answers? They are deleted, and you cannot begin again.")) return;
  await ask("/withdraw", {});
  stop("Your answers were withdrawn. Thank you for your time.");
};

// A page that the back button brings back has stood still: its times would be wrong.
addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

main().catch((error) => stop(`Something went wrong (${error?.message ?? error}). Please load this page again.`));
