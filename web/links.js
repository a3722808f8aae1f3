// What lies behind an input: through reroutes and bypassed nodes, and across the borders of subgraphs in both directions.

const SUBGRAPH_INPUT = -10 // the node id of links from a subgraph's border; newer pages write it as text
const BYPASSED = 4 // a node's mode
const MOST = 50 // links in a row

function linkOf(graph, id) {
  if (id == null || !graph) return undefined
  return graph.getLink?.(id) ?? graph.links?.get?.(id) ?? graph.links?.[id]
}

/** The nodes that stand for `subgraph` in the graphs around it, searched for from `graph` on. */
function* holders(graph, subgraph) {
  for (const node of graph?.nodes ?? graph?._nodes ?? []) {
    if (node.subgraph === subgraph) yield node
    else if (node.subgraph) yield* holders(node.subgraph, subgraph)
  }
}

/** What all of them say: the nodes of a subgraph that is used twice are the same ones, with other values from outside. */
function agreed(found) {
  const said = (node) => JSON.stringify([node?.comfyClass, node?.type, node?.widgets?.map(({ name, value }) => [name, value])])
  return found.every((node) => node === found[0] || said(node) === said(found[0])) ? found[0] : { type: 'several', widgets: [] }
}

/** The input that a bypassed node hands on: of the output's type, beside it if that one is, else the first. */
function passedOn(node, slot) {
  const type = node.outputs?.[slot]?.type
  return [node.inputs?.[slot], ...(node.inputs ?? [])].find((input) => input && input.type === type)
}

/** What stands for a widget that was dragged to a subgraph's border: its value is on the subgraph's node, the inner one is old. */
function promoted(outer, border) {
  const widget = border?.link == null && outer.widgets?.find((one) => one.name === (border?.widget?.name ?? border?.name))
  return widget ? { type: 'promoted', widgets: [{ name: 'value', value: widget.value }] } : undefined
}

function follow(graph, id, root, left) {
  const link = linkOf(graph, id)
  if (!link || left <= 0) return undefined
  if (Number(link.origin_id) === SUBGRAPH_INPUT) {
    return agreed([...holders(root, graph)].map((outer) => {
      const border = outer.inputs?.[link.origin_slot]
      return follow(outer.graph, border?.link, root, left - 1) ?? promoted(outer, border)
    }))
  }
  const node = graph.getNodeById(link.origin_id)
  if (node?.type === 'Reroute') return follow(graph, node.inputs?.[0]?.link, root, left - 1)
  if (node?.mode === BYPASSED) return follow(graph, passedOn(node, link.origin_slot)?.link, root, left - 1)
  if (node?.subgraph) return follow(node.subgraph, node.subgraph.outputs?.[link.origin_slot]?.linkIds?.[0], root, left - 1)
  return node ?? undefined
}

/** The node that the input `name` of a node gets its value from; undefined where there is none. */
export function source(node, name) {
  const input = node.inputs?.find((one) => one.name === name)
  return follow(node.graph, input?.link, node.graph?.rootGraph ?? node.graph, MOST)
}
