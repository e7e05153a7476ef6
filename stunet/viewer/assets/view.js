// The page of stunet_view: draws one case with NiiVue, and lists its classes. Texts come from files of others, so they
// reach the page through textContent only. Served pages fetch what they show; a page of --html has it inside.
"use strict";

(async () => {
  const element = (id) => document.getElementById(id);
  const KINDS = [
    { name: "missed: only in the reference", colour: [255, 70, 70] },
    { name: "added: only in the prediction", colour: [70, 150, 255] },
    { name: "another class in the reference", colour: [255, 200, 40] },
  ];
  const LAYERS = ["prediction", "reference", "difference", "none"];
  const VIEWS = ["all", "axial", "coronal", "sagittal", "3d"];
  const DELAY_MS = 150; // every update uploads all volumes again, so that several clicks make one

  const state = {
    cases: [], wanted: null, id: null, detail: null, layer: "prediction", view: "all", channel: 0,
    maps: {}, image: null, kinds: [], hiddenKinds: new Set(), hidden: new Set(), loading: 0, timer: 0,
  };

  // What a page of --html has inside, and a served page fetches.
  const embedded = element("embedded") ? JSON.parse(element("embedded").textContent) : null;
  const source = embedded
    ? {
        cases: async () => [{ id: "0", name: embedded.detail.name, dice: embedded.detail.dice, state: "measured" }],
        detail: async () => embedded.detail,
        volume: async (id, version, what) =>
          Uint8Array.from(atob(embedded.volumes[what]), (letter) => letter.charCodeAt(0)).buffer,
        ending: ".nii.gz",
      }
    : {
        cases: async () => (await answer("cases.json")).json(),
        detail: async (id) => (await answer(`case/${id}/case.json`)).json(),
        volume: async (id, version, what) => (await answer(`case/${id}/${version}/${what}.nii`)).arrayBuffer(),
        ending: ".nii",
      };

  async function answer(path) {
    let response;
    try {
      response = await fetch(path, { cache: "no-store" });
    } catch (error) {
      throw new Error("stunet_view no longer answers: it has been stopped");
    }
    if (!response.ok) {
      const said = await response.json().catch(() => ({}));
      const error = new Error(said.error || `stunet_view answers ${response.status}`);
      error.outdated = response.status === 409;
      throw error;
    }
    return response;
  }

  const { Niivue, NVImage, SHOW_RENDER, MULTIPLANAR_TYPE } = globalThis.niivue;
  const nv = new Niivue({
    isRadiologicalConvention: true, isNearestInterpolation: true, crosshairWidth: 0.25,
    crosshairWidthUnit: "percent", crosshairGap: 6, crosshairColor: [1, 0.9, 0.2, 0.8], backColor: [0, 0, 0, 1], show3Dcrosshair: true, dragAndDropEnabled: false,
    showLegend: false, isColorbar: false, multiplanarShowRender: SHOW_RENDER.ALWAYS,
    multiplanarLayout: MULTIPLANAR_TYPE.GRID, isOrientationTextVisible: true, logLevel: "error",
    viewModeHotKey: "", clipPlaneHotKey: "", cycleClipPlaneHotKey: "", loadingText: "",
  });
  const TYPES = {
    all: nv.sliceTypeMultiplanar, axial: nv.sliceTypeAxial, coronal: nv.sliceTypeCoronal,
    sagittal: nv.sliceTypeSagittal, "3d": nv.sliceTypeRender,
  };
  nv.onLocationChange = showLocation;

  // ---- the case -----------------------------------------------------------------------------------------------

  async function open(id, again = true) {
    const loading = (state.loading += 1);
    const old = state.detail;
    state.wanted = id;
    element("case").value = id;
    say("loading …");
    try {
      const detail = await source.detail(id);
      const volume = async (what) => toImage(await source.volume(id, detail.version, what), what);
      const [image, prediction, reference] = await Promise.all([
        volume(`image${Math.min(state.channel, Math.max(0, detail.channels.length - 1))}`),
        volume("prediction"),
        detail.has_reference ? volume("reference") : null,
      ]);
      if (loading !== state.loading) return; // another case was chosen meanwhile
      if (detail.channels.length <= state.channel) state.channel = 0;
      keepHidden(old, detail);
      Object.assign(state, { id, detail, image, maps: { prediction, reference, difference: null } });
      if (!detail.has_reference && ["reference", "difference"].includes(state.layer)) state.layer = "prediction";
      if (!detail.comparable && state.layer === "difference") state.layer = "prediction";
      window();
      fillNotes(detail.notes);
      fillChannels();
      fillClasses();
      const first = detail.classes.find((row) => row.at);
      draw();
      jump(first ? first.at : null);
      document.title = `${detail.name} - stunet_view`;
    } catch (error) {
      if (loading !== state.loading) return;
      if (error.outdated && again) return open(id, false); // its files have just changed
      state.id = id;
      fail(error);
    }
  }

  function keepHidden(old, detail) {
    // The same classes stay hidden in the next case, where they may have another position.
    const names = new Set((old ? old.classes : []).filter((row) => state.hidden.has(row.index)).map((row) => row.name));
    state.hidden = new Set(detail.classes.filter((row) => row.index && names.has(row.name)).map((row) => row.index));
  }

  async function toImage(buffer, what) {
    const made = await NVImage.new(buffer, `${what}${source.ending}`, "gray", 1.0);
    made.values = made.img; // those of the file, whatever is drawn
    return made;
  }

  function fail(error) {
    state.detail = null;
    nv.volumes = [];
    nv.back = null;
    nv.overlays = [];
    nv.drawScene();
    element("classes").replaceChildren();
    fillNotes([error.message]);
    say("this case cannot be shown");
  }

  // ---- drawing ------------------------------------------------------------------------------------------------

  function schedule() {
    clearTimeout(state.timer);
    state.timer = setTimeout(draw, DELAY_MS);
  }

  function draw() {
    clearTimeout(state.timer);
    if (!state.detail) return;
    const shown = layer();
    const opacity = Number(element("opacity").value) / 100;
    // NiiVue takes the mean opacity of a voxel and its six neighbours, so that a thin vessel nearly vanishes; where
    // labels meet it takes this value instead.
    nv.opts.atlasOutline = element("outline").checked ? 1 : Math.max(opacity, 0.001);
    if (shown) shown.opacity = element("outline").checked ? opacity / 3 : opacity;
    nv.opts.multiplanarForceRender = true;
    nv.volumes = shown ? [state.image, shown] : [state.image];
    nv.back = state.image;
    nv.overlays = nv.volumes.slice(1);
    nv.updateGLVolume();
    press();
    showLocation();
    // For whoever watches the page, such as a test.
    document.body.dataset.drawn = String(Number(document.body.dataset.drawn || 0) + 1);
  }

  function layer() {
    if (state.layer === "none") return null;
    if (state.layer === "difference") return difference();
    const map = state.maps[state.layer];
    // A colour without opacity would not do: outlines have one of their own.
    map.img = state.hidden.size ? masked(map.values) : map.values;
    colour(map, state.detail.classes.filter((row) => row.index));
    return map;
  }

  function masked(values) {
    const kept = new Uint16Array(state.detail.classes.length + 1).map((_, i) => (state.hidden.has(i) ? 0 : i));
    return values.map((value) => kept[value]);
  }

  function colour(map, rows) {
    const table = { R: [0, 0], G: [0, 0], B: [0, 0], A: [0, 0], I: [0, 0] };
    table.I[1] = Math.max(0, ...rows.map((row) => row.index)) + 1; // NiiVue wants a table of two entries at least
    for (const { index, colour: [r, g, b] } of rows) {
      table.R.push(r); table.G.push(g); table.B.push(b); table.A.push(255); table.I.push(index);
    }
    map.setColormapLabel(table);
  }

  // A voxel differs if its two classes do and one of them is shown.
  function difference() {
    const { prediction, reference } = state.maps;
    const map = (state.maps.difference ??= emptyLike(prediction));
    const visible = new Uint8Array(state.detail.classes.length + 2).fill(1);
    for (const index of state.hidden) visible[index] = 0;
    visible[0] = 0;
    const [p, r, out] = [prediction.values, reference.values, map.img];
    const plane = prediction.hdr.dims[1] * prediction.hdr.dims[2];
    const ignored = state.detail.classes.find((row) => row.ignored)?.index ?? -1;
    const counts = [0, 0, 0];
    const most = [0, 0, 0];
    const places = [null, null, null];
    for (let start = 0; start < p.length; start += plane) {
      const here = [0, 0, 0];
      const last = [0, 0, 0];
      for (let i = start; i < start + plane; i++) {
        const [one, other] = [p[i], r[i]];
        if (one === other || other === ignored || !(visible[one] || visible[other])) {
          out[i] = 0;
          continue;
        }
        const kind = one === 0 ? 0 : other === 0 ? 1 : 2;
        out[i] = state.hiddenKinds.has(kind) ? 0 : kind + 1;
        here[kind]++;
        last[kind] = i;
      }
      for (let kind = 0; kind < 3; kind++) {
        counts[kind] += here[kind];
        if (here[kind] > most[kind]) {
          most[kind] = here[kind];
          places[kind] = last[kind];
        }
      }
    }
    state.kinds = KINDS.map((kind, i) => ({
      ...kind, ml: counts[i] * state.detail.voxel_ml, at: places[i] === null ? null : toMm(prediction, places[i]),
    }));
    colour(map, KINDS.map((kind, i) => ({ index: i + 1, colour: kind.colour })));
    showKinds();
    return map;
  }

  function emptyLike(map) {
    const made = map.clone();
    made.hdr = { ...map.hdr, datatypeCode: 2, numBitsPerVoxel: 8 };
    made.img = new Uint8Array(map.values.length);
    return made;
  }

  function toMm(map, place) {
    const [, nx, ny] = map.hdr.dims;
    const voxel = [place % nx, Math.floor(place / nx) % ny, Math.floor(place / (nx * ny)), 1];
    return [0, 1, 2].map((row) => map.hdr.affine[row].reduce((sum, value, i) => sum + value * voxel[i], 0));
  }

  function window() {
    const channel = state.detail.channels[state.channel];
    element("intensities").hidden = !channel;
    const { low, high } = channel || { low: 0, high: 1 };
    state.image.cal_min = low;
    state.image.cal_max = high;
    element("low").value = Number(low.toPrecision(5));
    element("high").value = Number(high.toPrecision(5));
  }

  function jump(mm) {
    nv.scene.crosshairPos = mm ? nv.mm2frac(mm, 0, true) : [0.5, 0.5, 0.5];
    nv.createOnLocationChange();
    nv.drawScene();
  }

  // ---- what is under the crosshair ----------------------------------------------------------------------------

  function showLocation() {
    if (!state.detail || !nv.volumes.length) return;
    const mm = Array.from(nv.frac2mm(nv.scene.crosshairPos, 0, true)).slice(0, 3);
    const at = (map) => {
      const [x, y, z] = map.mm2vox(mm);
      const drawn = map.img;
      map.img = map.values;
      const value = map.getValue(x, y, z);
      map.img = drawn;
      return value;
    };
    const { prediction, reference } = state.maps;
    const indexes = [prediction, reference].map((map) => (map ? Math.round(at(map)) : null));
    const names = indexes.map((index) => (index === null ? null : nameOf(index)));
    const texts = [`${mm.map((value) => value.toFixed(1)).join(", ")} mm (RAS)`];
    if (state.detail.channels.length) texts.push(`${state.detail.channels[state.channel].name} ${Number(at(state.image).toPrecision(5))}`);
    texts.push(`prediction: ${names[0]}`);
    if (names[1] !== null) texts.push(`reference: ${names[1]}`);
    say(texts.join(" · "));
    Object.assign(element("status").dataset, {
      mm: JSON.stringify(mm), prediction: names[0], reference: names[1] ?? "",
    });
    for (const line of element("classes").rows) {
      line.classList.toggle("here", indexes.some((index) => index && Number(line.dataset.index) === index));
    }
  }

  function nameOf(index) {
    return index === 0 ? "background" : (state.detail.classes.find((row) => row.index === index)?.name ?? "?");
  }

  function say(text) {
    element("status").textContent = text;
  }

  // ---- the panel ----------------------------------------------------------------------------------------------

  function fillNotes(notes) {
    element("notes").hidden = !notes.length;
    element("notes").replaceChildren(...notes.map((note) => make("li", { textContent: note, dir: "auto" })));
  }

  function fillChannels() {
    const channels = state.detail.channels;
    element("channels").hidden = channels.length < 2;
    element("channel").replaceChildren(...channels.map(({ name }, i) => make("option", { value: i, textContent: name })));
    element("channel").value = state.channel;
  }

  function fillClasses() {
    element("classes").replaceChildren(...KINDS.map(kindLine), ...presentFirst().map(line));
    filter();
  }

  function presentFirst() {
    const absent = (row) => !(row.predicted_ml || row.reference_ml);
    return [...state.detail.classes].sort((one, other) => absent(one) - absent(other)); // otherwise the order stays
  }

  function line(row) {
    const indexes = row.index ? [row.index] : row.parts;
    const box = make("input", { type: "checkbox", checked: indexes.some((i) => !state.hidden.has(i)) });
    box.setAttribute("aria-label", `Show ${row.name}`);
    box.disabled = !indexes.length;
    box.addEventListener("change", () => {
      for (const index of indexes) box.checked ? state.hidden.delete(index) : state.hidden.add(index);
      check();
      schedule();
    });
    const place = row.at ?? state.detail.classes.find((other) => indexes.includes(other.index) && other.at)?.at ?? null;
    const made = tableRow(box, row, place, [row.predicted_ml, row.reference_ml], row.dice);
    made.dataset.index = row.index || "";
    made.dataset.parts = indexes.join(" ");
    made.classList.toggle("absent", !place);
    return made;
  }

  function kindLine(kind, i) {
    const box = make("input", { type: "checkbox", checked: !state.hiddenKinds.has(i) });
    box.setAttribute("aria-label", `Show ${kind.name}`);
    box.addEventListener("change", () => {
      box.checked ? state.hiddenKinds.delete(i) : state.hiddenKinds.add(i);
      schedule();
    });
    const made = tableRow(box, kind, null, [null, null], null);
    made.dataset.kind = i;
    made.querySelector(".name").addEventListener("click", () => state.kinds[i]?.at && jump(state.kinds[i].at));
    return made;
  }

  function tableRow(box, row, place, volumes, dice) {
    const swatch = make("span", { className: "swatch" });
    swatch.style.backgroundColor = `rgb(${row.colour.join(" ")})`;
    const name = make("button", { className: "name", textContent: row.name, dir: "auto", disabled: !place });
    name.title = place ? "Go there" : "";
    name.addEventListener("click", () => place && jump(place));
    const cell = make("div", { className: "cell" });
    cell.append(box, swatch, name);
    const first = make("td", {});
    first.append(cell);
    const made = make("tr", {});
    const text = (value) => (value === null || value === undefined ? "" : value === 0 ? "0" : value < 0.1 ? value.toPrecision(2) : value.toFixed(1));
    made.append(first, ...volumes.map((value) => {
      const made = make("td", { textContent: text(value) });
      if (value) made.title = `${(value * 1000).toFixed(1)} mm³`;
      return made;
    }));
    made.append(make("td", { textContent: dice === null || dice === undefined ? "" : dice.toFixed(3) }));
    return made;
  }

  function showKinds() {
    for (const made of element("classes").querySelectorAll("[data-kind]")) {
      const kind = state.kinds[Number(made.dataset.kind)];
      made.cells[1].textContent = kind.ml ? (kind.ml < 0.1 ? kind.ml.toPrecision(2) : kind.ml.toFixed(1)) : "0";
      made.cells[1].title = `${(kind.ml * 1000).toFixed(1)} mm³`;
      made.querySelector(".name").disabled = !kind.at;
    }
  }

  function filter() {
    const wanted = element("filter").value.trim().toLocaleLowerCase();
    for (const made of element("classes").rows) {
      const ofDifference = made.dataset.kind !== undefined;
      const fits = made.querySelector(".name").textContent.toLocaleLowerCase().includes(wanted);
      made.hidden = ofDifference ? state.layer !== "difference" : !fits;
    }
  }

  function check() {
    for (const made of element("classes").querySelectorAll("[data-parts]")) {
      const parts = made.dataset.parts.split(" ").filter(Boolean).map(Number);
      made.querySelector("input").checked = parts.some((index) => !state.hidden.has(index));
    }
  }

  function setAll(visible) {
    // What the filter leaves; without a filter, all.
    for (const made of element("classes").querySelectorAll("[data-parts]")) {
      if (made.hidden) continue;
      for (const index of made.dataset.parts.split(" ").filter(Boolean).map(Number)) {
        visible ? state.hidden.delete(index) : state.hidden.add(index);
      }
    }
    check();
    schedule();
  }

  function press() {
    for (const button of document.querySelectorAll(".layer")) {
      const name = button.dataset.layer;
      button.disabled = !state.detail
        || (name === "reference" && !state.detail.has_reference) || (name === "difference" && !state.detail.comparable);
      button.setAttribute("aria-pressed", String(name === state.layer));
    }
    for (const button of document.querySelectorAll(".view")) {
      button.setAttribute("aria-pressed", String(button.dataset.view === state.view));
    }
    filter();
  }

  function choose(name) {
    const button = document.querySelector(`.layer[data-layer="${name}"]`);
    if (button.disabled) return;
    state.layer = name;
    draw();
  }

  function look(name) {
    state.view = name;
    nv.setSliceType(TYPES[name]);
    press();
  }

  async function chooseChannel(number) {
    const { id, detail } = state;
    try {
      const image = await toImage(await source.volume(id, detail.version, `image${number}`), `image${number}`);
      if (state.detail !== detail) return;
      Object.assign(state, { channel: number, image });
      element("channel").value = number;
      window();
      draw();
    } catch (error) {
      if (error.outdated) return open(id);
      fail(error);
    }
  }

  // ---- cases --------------------------------------------------------------------------------------------------

  async function fillCases() {
    state.cases = await source.cases();
    const text = (one) => `${one.name} — ${one.state === "measured" ? (one.dice === null ? "no Dice" : `Dice ${one.dice.toFixed(3)}`) : one.state}`;
    element("case").replaceChildren(...state.cases.map((one) => make("option", { value: one.id, textContent: text(one) })));
    if (state.wanted) element("case").value = state.wanted;
    for (const id of ["previous", "next"]) element(id).disabled = state.cases.length < 2;
  }

  async function follow() {
    // Dice of all cases are computed meanwhile; the list is sorted again as they come.
    try {
      while (state.cases.some((one) => one.state === "waiting")) {
        await new Promise((done) => setTimeout(done, 1000));
        await fillCases();
      }
    } catch (error) {
      say(error.message);
    }
  }

  function step(by) {
    const now = state.cases.findIndex((one) => one.id === state.wanted);
    const there = state.cases[(now + by + state.cases.length) % state.cases.length];
    if (there && there.id !== state.wanted) open(there.id);
  }

  // ---- events -------------------------------------------------------------------------------------------------

  function make(kind, properties) {
    return Object.assign(document.createElement(kind), properties);
  }

  const KEYS = {
    n: () => step(1), p: () => step(-1), o: () => element("outline").click(), a: () => setAll(true),
    f: () => element("filter").focus(), x: () => choose(state.layer === "prediction" ? "reference" : "prediction"),
    v: () => look(VIEWS[(VIEWS.indexOf(state.view) + 1) % VIEWS.length]),
    c: () => state.detail?.channels.length > 1 && chooseChannel((state.channel + 1) % state.detail.channels.length),
  };
  LAYERS.forEach((name, i) => { KEYS[String(i + 1)] = () => choose(name); });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
    if (event.target.matches("select, input[type=search], input[type=number]")) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  element("filter").addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    element("filter").value = "";
    filter();
    element("canvas").focus();
  });
  element("previous").addEventListener("click", () => step(-1));
  element("next").addEventListener("click", () => step(1));
  element("case").addEventListener("change", (event) => {
    open(event.target.value);
    event.target.blur(); // so that keys are those of the page again
  });
  element("filter").addEventListener("input", filter);
  element("all").addEventListener("click", () => setAll(true));
  element("none").addEventListener("click", () => setAll(false));
  element("opacity").addEventListener("input", schedule);
  element("outline").addEventListener("change", draw);
  element("channel").addEventListener("change", (event) => {
    chooseChannel(Number(event.target.value));
    event.target.blur();
  });
  for (const id of ["low", "high"]) {
    element(id).addEventListener("change", () => {
      const [low, high] = [Number(element("low").value), Number(element("high").value)];
      if (!(low < high)) return;
      Object.assign(state.image, { cal_min: low, cal_max: high });
      draw();
    });
  }
  for (const button of document.querySelectorAll(".layer")) button.addEventListener("click", () => choose(button.dataset.layer));
  for (const button of document.querySelectorAll(".view")) button.addEventListener("click", () => look(button.dataset.view));

  try {
    await nv.attachToCanvas(element("canvas"));
    nv.setSliceType(TYPES.all);
    nv.setRenderAzimuthElevation(180, 10); // from the front: the patient's right is on the left here as well
  } catch (error) {
    fillNotes(["This browser has no WebGL 2, which the viewer needs."]);
    return;
  }
  try {
    await fillCases();
    const wanted = state.cases.find((one) => one.first) || state.cases[0];
    await open(wanted.id);
    follow();
  } catch (error) {
    fail(error);
  }
})();
