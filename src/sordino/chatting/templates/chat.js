"use strict";
// The page keeps the conversation and sends all of it with each prompt; the server keeps nothing.
const facts = JSON.parse(document.getElementById("facts").textContent);
const at = (id) => document.getElementById(id);
const settingsForm = at("settings"), field = (name) => settingsForm.elements[name];
const kept = `chat ${JSON.stringify([facts.conversation.models, facts.start])}`;
let turns = [];
let running = null; // what is being answered: its name on the server, and a promise of its end

// Settings
const numbers = ["strength", "temperature", "new_tokens", "seed", "top_k", "top_p", "repetition_penalty"];
function settings() {
  const given = { ...facts.start, pre_prompt: field("pre_prompt").value.trim() };
  for (const name of numbers) if (field(name)) given[name] = Number(field(name).value);
  return given;
}
function fill(given) {
  for (const name of numbers) if (field(name)) field(name).value = given[name];
  field("pre_prompt").value = given.pre_prompt;
  nameLead();
  showStrength();
}
function nameLead() {
  const words = field("pre_prompt").value.trim();
  const known = Object.entries(facts.pre_prompts).find(([, text]) => text === words);
  at("lead").value = known ? known[0] : "own";
}
function showStrength() {
  if (!facts.conversation.hooks) return;
  const strength = field("strength").value, short = Number(strength).toFixed(2);
  at("strength-shown").textContent = Number(short) === Number(strength) ? short : strength;
}
at("lead").addEventListener("change", () => {
  const words = facts.pre_prompts[at("lead").value];
  if (words === undefined) field("pre_prompt").focus();
  else field("pre_prompt").value = words;
  keep();
});
field("pre_prompt").addEventListener("input", nameLead);
settingsForm.addEventListener("change", () => keep());
settingsForm.addEventListener("submit", (event) => event.preventDefault());
at("another").addEventListener("click", () => {
  field("seed").value = Math.floor(Math.random() * 1e6);
  keep();
});
if (facts.conversation.hooks) {
  // With a step, the browser would round what the command line gave.
  field("strength").addEventListener("input", () => {
    field("strength").value = Number(field("strength").value).toFixed(2);
    showStrength();
  });
  field("strength").addEventListener("change", async () => {
    if (!turns.length) return;
    const asked = field("strength").value;
    await stop();
    if (field("strength").value === asked) await answer(["quiet"]); // else it was moved on
  });
}

// The conversation on the page
// Controls and marks of writing direction would mislead a reader, as in sordino.progress.tame.
const misleading = /(?![\n\t])[\p{Cc}\p{Cs}\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/gu;
const tame = (text) => text.replaceAll("\r\n", "\n").replace(misleading, "\ufffd");
const names = { original: "Original", quiet: "Quiet" };
function element(tag, name, text = "") {
  const made = document.createElement(tag);
  made.className = name;
  made.textContent = text;
  return made;
}
function show(number) {
  const turn = turns[number], item = element("li", "");
  const prompt = element("p", "prompt", turn.prompt), pair = element("div", "pair");
  prompt.dir = "auto";
  for (const side of ["original", "quiet"]) {
    const box = element("div", side), heading = element("h3", "");
    heading.append(element("b", "", names[side]), element("span", "how"), element("span", "verdict none"));
    const text = element("p", "text");
    text.dir = "auto";
    box.append(heading, text, element("p", "note"));
    pair.append(box);
  }
  item.append(prompt, pair);
  at("turns").append(item);
  for (const side of Object.keys(turn.answers)) settle(number, side);
}
const box = (number, side) => at("turns").children[number].querySelector(`.${side}`);
function how(side, given) {
  const strength = side === "quiet" && facts.conversation.hooks ? [`strength ${given.strength}`] : [];
  return [...strength, `seed ${given.seed}`].join(", ");
}
function settle(number, side) {
  const place = box(number, side), answer = turns[number].answers[side];
  const text = place.querySelector(".text"), verdict = place.querySelector(".verdict");
  text.classList.remove("running");
  if (!answer) return;
  text.textContent = tame(answer.text);
  place.querySelector(".how").textContent = how(side, answer.settings);
  place.querySelector(".note").textContent = answer.note;
  verdict.textContent = answer.verdict;
  verdict.className = answer.score === null ? "verdict none" : answer.score > facts.toxic ? "verdict toxic" : "verdict";
}
function begin(number, side, given) {
  const place = box(number, side), text = place.querySelector(".text");
  text.textContent = "";
  text.classList.add("running");
  place.querySelector(".how").textContent = how(side, given);
  place.querySelector(".note").textContent = "";
  place.querySelector(".verdict").textContent = "";
  place.querySelector(".verdict").className = "verdict none";
}
function refresh() {
  at("send").hidden = running !== null;
  at("stop").hidden = running === null;
  for (const id of ["retry", "clear"]) at(id).disabled = running !== null || !turns.length;
  for (const id of ["save-json", "save-markdown"]) at(id).disabled = !turns.length;
  at("empty").hidden = turns.length > 0;
}
function complain(says) {
  at("alert").textContent = says;
  at("alert").hidden = !says;
}
function complainOfServer(error) {
  complain(`The server cannot be reached (${error.message}): start sordino chat again.`);
}
function keep() {
  try {
    sessionStorage.setItem(kept, JSON.stringify({ turns, settings: settings() }));
  } catch {
    complain("The conversation is too long to survive a reload of this page: save it.");
  }
}
const atBottom = () => innerHeight + scrollY >= document.body.scrollHeight - 80;
const toBottom = () => scrollTo({ top: document.body.scrollHeight });

// Asking
const post = (path, content, more = {}) => fetch(path, {
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content), ...more,
});
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (waiting + value).split("\n\n");
    waiting = parts.pop();
    for (const part of parts) yield JSON.parse(part.slice("data: ".length));
  }
}
function answer(sides) {
  const id = `${Date.now()}-${Math.random()}`;
  const end = carryOut(id, sides).finally(() => {
    running = null;
    for (const side of sides) if (turns.length) settle(turns.length - 1, side);
    refresh();
    keep();
  });
  running = { id, end };
  refresh();
  return end;
}
async function carryOut(id, sides) {
  const number = turns.length - 1, given = settings();
  complain("");
  for (const side of sides) begin(number, side, given);
  toBottom();
  try {
    const response = await post("answer", { id, turns, sides, settings: given });
    if (!response.ok) return complain(await response.text());
    let whole = false;
    for await (const event of events(response)) {
      take(number, event);
      whole = event.kind === "end";
    }
    if (!whole) complain("The answer ended early: the terminal of sordino chat shows why.");
  } catch (error) {
    complainOfServer(error);
  }
}
function take(number, event) {
  const stay = atBottom();
  if (event.kind === "waiting") at("status").textContent = "Waiting for another window's answer.";
  if (event.kind === "error") complain(event.says);
  if (event.kind === "more") box(number, event.side).querySelector(".text").append(tame(event.text));
  if (event.kind === "instead") box(number, event.side).querySelector(".text").textContent = tame(event.text);
  if (event.kind === "answered") {
    turns[number].answers[event.side] = event.answer;
    settle(number, event.side);
    at("status").textContent = `${names[event.side]} has answered. ${event.answer.verdict}`;
  }
  if (stay) toBottom();
}
async function stop() {
  if (!running) return;
  const { id, end } = running;
  await post("stop", id).catch(() => {});
  await end;
}
at("composer").addEventListener("submit", async (event) => {
  event.preventDefault();
  const prompt = at("prompt").value;
  if (running || !prompt.trim()) return;
  if (!settingsForm.reportValidity()) return;
  at("prompt").value = "";
  turns.push({ prompt, answers: {} });
  show(turns.length - 1);
  await answer(["original", "quiet"]);
  if (Object.keys(turns.at(-1)?.answers ?? {}).length) return;
  turns.pop(); // nobody answered it: it goes back to where it can be changed
  at("turns").lastElementChild.remove();
  if (!at("prompt").value) at("prompt").value = prompt;
  refresh();
  keep();
});
at("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  at("composer").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
});
at("stop").addEventListener("click", stop);
at("retry").addEventListener("click", () => {
  if (settingsForm.reportValidity()) answer(["original", "quiet"]);
});
at("clear").addEventListener("click", () => {
  turns = [];
  at("turns").replaceChildren();
  complain("");
  refresh();
  keep();
  at("prompt").focus();
});

// Saving
function download(name, kind, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: kind }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
at("save-json").addEventListener("click", () => {
  const all = { ...facts.conversation, turns };
  download("conversation.json", "application/json", `${JSON.stringify(all, null, 2)}\n`);
});
at("save-markdown").addEventListener("click", async () => {
  try {
    const response = await post("markdown", { turns });
    const text = await response.text();
    if (response.ok) download("conversation.md", "text/markdown", text);
    else complain(text);
  } catch (error) {
    complainOfServer(error);
  }
});

// What a window showed before it was loaded again
try {
  const before = JSON.parse(sessionStorage.getItem(kept) ?? "{}");
  fill(before.settings ?? facts.start);
  turns = before.turns ?? [];
} catch {
  fill(facts.start);
}
turns.forEach((_, number) => show(number));
if (turns.length) toBottom();
refresh();
