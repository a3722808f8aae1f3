// The extension: adds the curve, the tile grid and the before/after slider to the nodes. Without it the nodes work the same.

import { layTiles, readable, sqrtEta } from './arithmetic.js'
import { drawCurve, drawTiles, element } from './drawing.js'
import { source } from './links.js'
import { Slider } from './slider.js'
import { STRINGS } from './strings.js'

const CURVED = ['ResShiftUpscaleImage', 'TiledResShiftUpscaleImage', 'ResShiftInpaint', 'ResShiftToUpscaleModel']
const COMPARED = ['ResShiftUpscaleImage', 'TiledResShiftUpscaleImage', 'ResShiftInpaint']
const TILED = 'TiledResShiftUpscaleImage'
const LOADER = 'LoadResShiftModel'
const EXAMPLE = [960, 540] // pixels of a picture that is not known yet
const AROUND = [24, 4] // pixels of a node's width and of a panel's height that the slider does not get
const PAUSE_MS = 300
const LATE_MS = 2000
const PREVIEW = '$$canvas-image-preview' // the widget of live previews in the canvas renderer
const TEXT = '$$node-text-preview' // and of texts that a run writes on a node (nodes/told.py)
const AGAIN_MS = 10000 // until what could not be fetched is tried again

const app = window.comfyAPI.app.app
const api = window.comfyAPI.api.api

function language() {
  try {
    return app.extensionManager?.setting?.get('Comfy.Locale') ?? app.ui.settings.getSettingValue('Comfy.Locale') ?? 'en'
  } catch {
    return 'en'
  }
}

function word(key, values = {}) {
  const strings = STRINGS[language()] ?? STRINGS.en // zh is no zh-TW: English is read there, Simplified Chinese may not be
  return (strings[key] ?? STRINGS.en[key]).replace(/\{(\w+)\}/g, (_, name) => values[name])
}

// ------------------------------------------------------------------------------------------ what is connected

const widgetValue = (node, name) => node.widgets?.find((widget) => widget.name === name)?.value

/** What a run takes for a widget: its own value, that of the node it is linked to, or undefined where only the run tells. */
function value(node, name, links = 20) {
  const from = source(node, name)
  if (!from || from.type === 'PrimitiveNode') return widgetValue(node, name) // such nodes write into the widget itself
  if (!source(from, 'value')) return widgetValue(from, 'value')
  return links && from.comfyClass?.startsWith('Primitive') ? value(from, 'value', links - 1) : undefined // others compute with it
}

function modelName(node) {
  if (node.inputs?.find((input) => input.name === 'model')?.link == null) return 'builtin' // nothing is connected: an example
  const loader = source(node, 'model')
  return loader?.comfyClass === LOADER ? value(loader, 'model') : undefined // another pack's node
}

const facts = new Map() // model name -> facts, or null while they are fetched and, until R is pressed, where there are none

function factsOf(name) {
  if (typeof name !== 'string') return null
  if (!facts.has(name)) {
    facts.set(name, null)
    api
      .fetchApi(`/resshift/model?name=${encodeURIComponent(name)}`)
      .then((answer) => (answer.ok ? answer.json() : answer.status === 404 ? null : Promise.reject(answer.status)))
      .then((found) => facts.set(name, found))
      .catch(() => setTimeout(() => facts.delete(name), AGAIN_MS))
  }
  return facts.get(name)
}

const sizes = new Map() // address of a picture -> [width, height], or null while it is fetched

function sizeOf(address) {
  if (!sizes.has(address)) {
    sizes.set(address, null)
    const image = new Image()
    image.onload = () => sizes.set(address, [image.naturalWidth, image.naturalHeight])
    image.onerror = () => setTimeout(() => sizes.delete(address), AGAIN_MS)
    image.src = address
  }
  return sizes.get(address)
}

/** [width, height, known]: of a connected LoadImage, else, as a guess, of the last run's picture, else of an example. */
function pictureSize(node) {
  const loader = source(node, 'image')
  const file = loader?.comfyClass === 'LoadImage' ? value(loader, 'image') : undefined
  if (typeof file === 'string') {
    const slash = file.lastIndexOf('/')
    const query = new URLSearchParams({ filename: file.slice(slash + 1), subfolder: file.slice(0, Math.max(0, slash)), type: 'input' })
    const size = sizeOf(api.apiURL(`/view?${query}`))
    if (size) return [...size, true]
  }
  return [...(node.resshiftSize ?? EXAMPLE), false]
}

// ------------------------------------------------------------------------------------------ what is drawn

function redrawCurve(node, svg) {
  const model = factsOf(modelName(node))
  const chosen = ['steps', 'kappa', 'p'].map((name) => value(node, name))
  if (!model || chosen.includes(undefined)) return svg.replaceChildren()
  const [steps, kappa, p] = chosen.map((number, i) => number || [model.steps, model.kappa, model.p][i])
  const curve = (count, shape) => sqrtEta(count, shape, model.sqrt_eta_1, model.sqrt_eta_T)
  const same = steps === model.trained_steps && p === model.p
  drawCurve(svg, {
    trained: curve(model.trained_steps, model.p),
    chosen: curve(Math.min(steps, 1000), p),
    kappaRatio: model.kappa ? kappa / model.kappa : 1,
    words: {
      settings: `T ${steps} · κ ${+kappa.toPrecision(4)} · p ${+p.toPrecision(4)}`,
      trained: same && kappa === model.kappa ? word('as trained') : word('grey: as trained'),
    },
  })
}

function redrawTiles(node, svg) {
  const model = factsOf(modelName(node))
  const chosen = ['tile', 'overlap', 'tile_batch', 'wrap'].map((name) => value(node, name))
  if (!model || chosen.includes(undefined)) return svg.replaceChildren()
  const [width, height, known] = pictureSize(node)
  const [tile, overlap, tile_batch, wrap] = chosen
  const layout = layTiles(model, width, height, { tile, overlap, tile_batch, wrap })
  const count = layout.rows.starts.length * layout.columns.starts.length
  const shape = `${layout.columns.tile} × ${layout.rows.tile}`
  const tiles = { size: `${known ? '' : '≈ '}${width} × ${height}`, count, tile: shape }
  const memory = { memory: readable(layout.bytes, STRINGS[language()] ? language() : 'en') }
  drawTiles(svg, {
    width, height, layout, wrap,
    words: {
      count: count === 1 ? word('{size}: 1 tile of {tile}', tiles) : word('{size}: {count} tiles of {tile}', tiles),
      memory: tile_batch ? word('{memory} per batch (fp32)', memory) : word('{memory} per tile (fp32)', memory),
    },
  })
}

/** What a drawing depends on; it is made again when this changes. Widgets change in many ways, so they are looked at. */
function signature(node) {
  const name = modelName(node)
  return JSON.stringify([
    name, Boolean(factsOf(name)), language(),
    value(node, 'tile') === undefined || pictureSize(node), // to ask is to fetch the picture, and only tiles depend on it
    ...['steps', 'kappa', 'p', 'tile', 'overlap', 'tile_batch', 'wrap'].map((id) => value(node, id)),
  ])
}

const drawings = new WeakMap() // node -> [redraw functions]
const shown = new Set() // nodes with drawings that are in a graph: copies for the clipboard and for subgraphs never are

/** Whether a node lies in the workflow that is open. Some pages forget to tell nodes in subgraphs that they are gone. */
function isThere(node) {
  const { graph } = node
  const root = graph?.rootGraph ?? graph
  return graph?.getNodeById(node.id) === node && (graph === root || root.subgraphs?.get(graph.id) === graph)
}

function refresh() {
  for (const node of shown) {
    if (!isThere(node)) {
      shown.delete(node)
      continue
    }
    try {
      putPanelsBack(node)
      showLastPair(node)
      node.resshiftExpanded?.()
      node.resshiftSettle?.()
      const now = signature(node)
      if (now === node.resshiftDrawn) continue
      node.resshiftDrawn = now
      for (const redraw of drawings.get(node)) redraw()
    } catch (error) {
      console.warn('ResShift cannot draw on a node:', error) // the others are drawn all the same
    }
  }
}

// ------------------------------------------------------------------------------------------ the widgets

/**
 * A panel in the node, `height` pixels high; 0 hides it until `resize` is called. It holds no value: nothing of it is saved,
 * and positions of other widgets stay as they are. Nodes 2.0 shows only widgets that are there from the start, and stretches
 * those that have a computeLayoutSize where the node is higher than it needs to be.
 */
function addPanel(node, name, content, height) {
  const holder = document.createElement('div')
  holder.className = `resshift-panel ${name}`
  holder.append(content)
  const widget = node.addDOMWidget(name, 'resshift', holder, {
    serialize: false, hideOnZoom: false, getValue: () => undefined, setValue: () => {}, getMinHeight: () => height, getMaxHeight: () => height,
  })
  widget.serialize = false
  widget.computeLayoutSize = undefined
  widget.computeSize = () => [120, height]
  widget.label = '' // Nodes 2.0 would print the name
  // as wide as the node: the canvas' panel of parameters sets its own width here, and leaves it
  Object.defineProperty(widget, 'width', { get: () => undefined, set: () => {}, configurable: true, enumerable: true })
  const resize = (pixels) => {
    height = pixels
    holder.style.cssText = `box-sizing:border-box;width:100%;height:${height}px;min-height:${height}px;padding:${height ? 2 : 0}px 0;overflow:hidden`
  }
  resize(height)
  panels.set(node, [...(panels.get(node) ?? []), [name, holder]])
  return resize
}

const panels = new WeakMap() // node -> [[name, element]]

const CANVAS_HOLDER = '.dom-widget' // what the canvas renderer puts a panel into, over the canvas

/**
 * Drawings, and a slider without pictures, take nothing from the mouse: it means the canvas below them. (A hidden panel's
 * place is as high as the page.) Nodes 2.0 sees to that itself.
 */
function letMouseThrough() {
  const style = document.createElement('style')
  style.textContent = `${CANVAS_HOLDER}:has(> .resshift-panel > :is(svg, [hidden])) { pointer-events: none !important }`
  document.head.append(style)
}

/** The slider wants the left button only. */
function forwardMouse(target) {
  const forward = (kind, wanted, handler) =>
    target.addEventListener(kind, (event) => {
      if (!wanted(event) || !target.closest(CANVAS_HOLDER)) return
      event.preventDefault()
      handler(event)
    })
  forward('wheel', () => true, (event) => app.canvas.processMouseWheel(event))
  forward('pointerdown', (event) => event.button > 0, (event) => app.canvas.processMouseDown(event))
  forward('contextmenu', () => true, () => {}) // the canvas has opened its own
}

/** Nodes 2.0 keeps what it shows of a node when Undo makes the node anew: then the page holds the old node's panels. */
function putPanelsBack(node) {
  if (node.graph !== app.canvas?.graph) return
  for (const [name, holder] of panels.get(node) ?? []) {
    if (holder.isConnected) continue
    document.querySelector(`[data-node-id="${CSS.escape(node.id)}"] .resshift-panel.${name}`)?.replaceWith(holder)
  }
}

function addDrawing(node, name, height, redraw) {
  const svg = element('svg', { width: '100%', height: '100%', viewBox: `0 0 260 ${height}`, preserveAspectRatio: 'xMidYMid meet' })
  addPanel(node, name, svg, height)
  drawings.set(node, [...(drawings.get(node) ?? []), () => redraw(node, svg)])
}

function addSlider(node) {
  const slider = new Slider({ before: word('before'), after: word('after') })
  const resize = addPanel(node, 'resshift_compare', slider.element, 0)
  let grown = 0 // by how much the slider has made the node higher
  let settled = 0 // until when (ms) the page may still make it higher: Nodes 2.0 lays widgets out in its own way
  let waiting // the proportions of a slider that came while the node was collapsed, which has no size of its own then
  let made = 0 // the slider's height
  let early = false // whether the slider came back (after Undo, say) while a run goes on, whose end lays the node out again
  const make = (proportions) => {
    waiting = node.flags?.collapsed ? proportions : undefined
    if (waiting !== undefined) return
    const height = proportions && Math.round(Math.min(280, Math.max(120, (node.size[0] - AROUND[0]) * proportions + AROUND[1])))
    if (grown && height === made) return // Nodes 2.0 would not lay the node out again, and leave it the canvas' height
    made = height
    resize(height)
    const before = grown
    const without = ((hasPreview(node) && heights.get(node)) || node.size[1]) - before
    const [wide, high] = sizeWithoutPreview(node)
    grown = height ? Math.max(0, high - without) : 0
    if (heights.has(node)) heights.set(node, heights.get(node) + grown - before)
    node.setSize([Math.max(node.size[0], wide), node.size[1] + grown - before])
    node.setDirtyCanvas?.(true, true)
    settled = height ? Date.now() + LATE_MS : 0
    node.resshiftSettle = (last = false) => {
      early &&= running
      if (settled && (early || node.graph !== app.canvas?.graph)) settled = Date.now() + LATE_MS // or when its graph is opened
      if (Date.now() < settled && !early && !node.flags?.collapsed && !hasPreview(node)) grown = Math.max(0, node.size[1] - without)
      if (last) settled = 0
    }
  }
  const address = ({ filename, subfolder, type }) => api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`)
  slider.onLost = () => make(0) // the server has cleared its temporary files
  node.resshiftShow = (pair, again = false) => {
    early = again
    node.resshiftPair = pair.before.filename
    node.resshiftSize = pair.picture
    make(pair.height / pair.width)
    slider.show(address(pair.before), address(pair.after))
  }
  const serialize = node.onSerialize
  node.onSerialize = function (saved) {
    serialize?.apply(this, arguments)
    node.resshiftSettle?.()
    const high = (hasPreview(node) && heights.get(node)) || saved.size[1]
    if (high > grown) saved.size = [saved.size[0], high - grown] // who opens it has neither preview nor slider yet
  }
  node.resshiftExpanded = () => {
    if (waiting !== undefined && !node.flags?.collapsed) make(waiting)
  }
  forwardMouse(slider.element)
}

/** The page's own name of a node, in the workflow or in a subgraph. */
const locator = (node) => ((node.graph?.rootGraph ?? node.graph) === node.graph ? `${node.id}` : `${node.graph.id}:${node.id}`)

/** The pair in a node's output. It is text, so that the page does not count it among the run's pictures; it once was not. */
function pairOf(output) {
  const pair = output?.resshift_compare?.[0]
  return typeof pair === 'string' ? JSON.parse(pair) : pair
}

/** After Undo, another tab and back, or a run that had nothing to do: the page still knows what the last run gave. */
function showLastPair(node) {
  const pair = pairOf(app.nodeOutputs?.[locator(node)])
  if (!pair || pair.before.filename === node.resshiftPair || !node.resshiftShow) return
  if (!running) forgetPreview(node)
  node.resshiftShow(pair, running)
}

const heights = new WeakMap() // node -> its height before the run
let running = false // whether ComfyUI computes something for this page

/** Nodes 2.0 keeps live previews in a store of its own, and has no call for packs to take one away. */
function previewStore() {
  return document.querySelector('#vue-app')?.__vue_app__?.config.globalProperties.$pinia?._s?.get('nodeOutput')
}

/** Whether a live preview makes the node higher than it is. */
function hasPreview(node) {
  const inCanvas = node.imgs || node.widgets?.some((widget) => widget.name === PREVIEW)
  return Boolean(inCanvas || previewStore()?.nodePreviewImages?.[locator(node)])
}

/** The size that the node needs; the canvas would count a live preview, which goes. */
function sizeWithoutPreview(node) {
  const place = node.widgets.findIndex((widget) => widget.name === PREVIEW)
  if (place < 0) return node.computeSize()
  const [preview] = node.widgets.splice(place, 1)
  const size = node.computeSize()
  node.widgets.splice(place, 0, preview)
  return size
}

/** The slider takes the place of the last live preview, which ComfyUI would keep below it. */
function forgetPreview(node) {
  const preview = node.widgets?.findIndex((widget) => widget.name === PREVIEW) ?? -1
  const store = previewStore()
  const held = preview >= 0 || store?.nodePreviewImages?.[locator(node)]
  if (preview >= 0) {
    node.widgets[preview].onRemove?.() // it draws node.imgs: both go, or neither
    node.widgets.splice(preview, 1)
  }
  node.imgs = undefined
  if (store?.revokePreviewsByLocatorId) store.revokePreviewsByLocatorId(locator(node))
  else if (store?.nodePreviewImages) delete store.nodePreviewImages[locator(node)] // pages of 2025
  if (app.nodePreviewImages) delete app.nodePreviewImages[node.id]
  if (held) node.setSize([node.size[0], Math.max(node.computeSize()[1], heights.get(node) ?? 0)]) // it had made the node taller
}

/** A line that the last run wrote on the node (nodes/told.py). The server cannot take it away: the page ignores empty ones. */
function forgetText(node) {
  const place = node.widgets?.findIndex((widget) => widget.name === TEXT) ?? -1
  if (place < 0) return
  const before = node.computeSize()[1]
  node.widgets[place].onRemove?.()
  node.widgets.splice(place, 1)
  const after = node.computeSize()[1]
  // the page made the node higher by what of the text did not fit into the room that it had
  node.setSize([node.size[0], Math.max(after + (rooms.get(node) ?? 0), node.size[1] - before + after)])
  if (heights.has(node)) heights.set(node, node.size[1])
}

const rooms = new WeakMap() // node -> by how much it was higher than it had to be, before a text came

function measureRoom(node) {
  if (!node.widgets?.some((widget) => widget.name === TEXT)) rooms.set(node, Math.max(0, node.size[1] - node.computeSize()[1]))
}

/** Pages of 2025 save the text among the values of inputs, by place: an input of a later version would take it for its own. */
function saveInputsAlone(node) {
  const serialize = node.onSerialize
  node.onSerialize = function (saved) {
    serialize?.apply(this, arguments)
    const inputs = this.widgets?.findIndex((widget) => widget.serialize === false || widget.name === TEXT) ?? -1
    if (inputs >= 0 && saved.widgets_values?.length > inputs) saved.widgets_values.length = inputs
  }
}

const writesText = (node) => node.comfyClass === LOADER || CURVED.includes(node.comfyClass)

function* nodesBelow(graph) {
  for (const node of graph?.nodes ?? graph?._nodes ?? []) {
    yield node
    if (node.subgraph) yield* nodesBelow(node.subgraph)
  }
}

/** A node begins to run: what is on it was true of another run. One that ComfyUI has in its cache keeps its text. */
function forgetOldText({ detail }) {
  const id = String(detail?.node ?? detail ?? '').split(':').pop() // in subgraphs it begins with the nodes around it
  for (const node of nodesBelow(app.rootGraph ?? app.graph)) {
    if (String(node.id) === id && writesText(node)) forgetText(node)
  }
}

const finished = new Map() // node -> until when (ms) a preview that was still on its way is taken away too

function forgetLatePreviews() {
  for (const [node, until] of finished) {
    forgetPreview(node)
    if (Date.now() > until) finished.delete(node)
  }
}

/** A run that came to no end: its last preview would be taken for a result, and its height for the node's. */
function forgetUnfinished() {
  running = false
  for (const node of shown) forgetPreview(node)
}

function listen(node) {
  const before = node.onExecuted
  node.onExecuted = function (output) {
    before?.apply(this, arguments)
    const pair = pairOf(output)
    if (!pair) return
    forgetPreview(node)
    finished.set(node, Date.now() + LATE_MS)
    node.resshiftShow(pair)
  }
}

app.registerExtension({
  name: 'resshift.nodes',
  setup() {
    letMouseThrough()
    setInterval(refresh, PAUSE_MS)
    setInterval(forgetLatePreviews, PAUSE_MS)
    api.addEventListener('executing', forgetOldText)
    api.addEventListener('execution_start', () => {
      finished.clear()
      for (const node of shown) {
        node.resshiftSettle?.(true) // or the next live preview would count as the slider's
        heights.set(node, node.size[1])
      }
      running = true
      for (const node of nodesBelow(app.rootGraph ?? app.graph)) if (writesText(node)) measureRoom(node)
    })
    api.addEventListener('execution_success', () => (running = false))
    for (const kind of ['execution_error', 'execution_interrupted']) api.addEventListener(kind, forgetUnfinished)
  },
  refreshComboInNodes() {
    facts.clear() // R: files may have come, gone or changed
    sizes.clear()
    for (const node of shown) node.resshiftDrawn = node.resshiftPair = undefined // a slider whose pictures could not be had is tried again
  },
  nodeCreated(node) {
    if (writesText(node)) saveInputsAlone(node)
    if (CURVED.includes(node.comfyClass)) addDrawing(node, 'resshift_curve', 100, redrawCurve)
    if (node.comfyClass === TILED) addDrawing(node, 'resshift_tiles', 148, redrawTiles)
    if (COMPARED.includes(node.comfyClass)) {
      addSlider(node)
      listen(node)
    }
    if (!drawings.has(node)) return
    const [wide, high] = node.computeSize() // its size is older than the panels, and the canvas leaves no room below the last
    node.setSize([Math.max(wide, node.size[0]), Math.max(high, node.size[1])])
    const [added, removed] = [node.onAdded, node.onRemoved]
    node.onAdded = function () {
      shown.add(node)
      added?.apply(this, arguments)
    }
    node.onRemoved = function () {
      shown.delete(node)
      removed?.apply(this, arguments)
    }
    const configure = node.onConfigure
    node.onConfigure = function () {
      configure?.apply(this, arguments)
      heights.set(node, node.size[1]) // made anew during a run, by Undo or another tab and back: what was saved is without a preview
    }
    if (node.graph) shown.add(node)
  },
})
