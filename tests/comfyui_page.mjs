// As much of ComfyUI's page as web/resshift.js uses; time passes when `tick` is called.

const later = []
const every = []
globalThis.setTimeout = (call) => later.push(call)
globalThis.setInterval = (call) => every.push(call)

class Element {
  constructor(name) {
    Object.assign(this, { name, children: [], style: {}, hidden: false, isConnected: true, attributes: {}, listeners: {} })
  }
  append(...children) {
    this.children.push(...children)
  }
  replaceChildren(...children) {
    this.children = children
  }
  setAttribute(key, value) {
    this.attributes[key] = value
  }
  addEventListener(kind, call) {
    ;(this.listeners[kind] ??= []).push(call)
  }
  closest(selector) {
    return selector === this.inside ? this : null
  }
  /** All that is written in it. */
  get words() {
    return this.textContent ?? this.children.map((child) => child.words ?? child).join('|')
  }
}

export const settings = {}
export const asked = [] // addresses
export const server = { answer: () => Promise.resolve({ ok: false, status: 404 }) }
export const graph = { nodes: [], links: new Map(), getNodeById: (id) => graph.nodes.find((node) => node.id === id) }
export const heard = {} // what the page listens to: kind -> function
export const mouse = [] // what the canvas was handed

graph.rootGraph = graph
globalThis.document = {
  createElement: (name) => new Element(name),
  createElementNS: (_, name) => new Element(name),
  head: new Element('head'),
  querySelector: () => null,
}
globalThis.Image = class {}
const app = { graph, nodeOutputs: {}, extensionManager: { setting: { get: (key) => settings[key] } }, registerExtension: (made) => { app.extension = made } }
app.canvas = { graph, processMouseWheel: (event) => mouse.push(event.kind), processMouseDown: (event) => mouse.push(event.kind) }
const api = {
  fetchApi: (address) => asked.push(address) && server.answer(),
  apiURL: (path) => path,
  addEventListener: (kind, call) => { heard[kind] = call },
}
globalThis.window = { comfyAPI: { app: { app }, api: { api } } }

await import('../web/resshift.js')
app.extension.setup()

/** A node of ours in the graph; panels are found by their name in `panels`. */
export function place(comfyClass, widgets = {}, inputs = []) {
  const node = { id: graph.nodes.length + 1, comfyClass, graph, inputs, size: [330, 590], panels: {} } // as before the panels
  node.widgets = Object.entries(widgets).map(([name, value]) => ({ name, value }))
  node.addDOMWidget = (name, _, element) => {
    const widget = { name, element, computeLayoutSize: () => ({}) }
    node.widgets.push(widget)
    node.panels[name] = element.children[0]
    return widget
  }
  node.computeSize = () => [330, 600 + node.widgets.reduce((sum, one) => sum + (one.name === 'resshift_compare' ? one.computeSize()[1] : 0), 0)]
  node.setSize = (size) => { node.size = size }
  graph.nodes.push(node)
  app.extension.nodeCreated(node)
  return node
}

/** Timers that are due are called, and promises are kept. */
export async function tick({ late = false } = {}) {
  for (const call of late ? later.splice(0) : []) call()
  for (const call of every) call()
  for (let i = 0; i < 20; i++) await null
  for (const call of every) call()
}

export const pressR = () => app.extension.refreshComboInNodes()

/** One event at an element; whether its default was prevented. */
export function event(target, kind, more = {}) {
  let prevented = false
  for (const call of target.listeners[kind] ?? []) call({ kind, type: kind, preventDefault: () => { prevented = true }, ...more })
  return prevented
}
