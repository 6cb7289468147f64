//! Graphs, as far as capture makes them: look at the nodes, instantiate, launch, destroy.

use crate::capture::node_handle;
use crate::codes::{self, Out, put};
use crate::entry::driver;

driver! {
    fn cuGraphInstantiateWithFlags(exec: Out<u64>, graph: u64, _flags: u64) |sim| {
        let handle = sim.captures.instantiate(graph)?;
        put(exec, handle)
    }

    fn cuGraphLaunch(exec: u64, stream: u64) |sim| {
        let key = sim.stream_key(stream)?;
        let context = sim.stream(key)?.context;
        sim.context_error(context)?;
        sim.launch_graph(exec, key)
    }

    fn cuGraphExecDestroy(exec: u64) |sim| { sim.destroy_exec(exec) }

    fn cuGraphDestroy(graph: u64) |sim| { sim.destroy_graph(graph) }

    fn cuGraphGetNodes(graph: u64, nodes: *mut u64, count: Option<&mut usize>) |sim| {
        let count = count.ok_or(codes::INVALID_VALUE)?;
        let made = sim.captures.graph(graph)?.len();
        if nodes.is_null() {
            *count = made;
            return Ok(());
        }
        for at in 0..*count {
            let handle = if at < made { node_handle(graph, at) } else { 0 };
            // SAFETY: the caller's array has as many places as its count says.
            unsafe { nodes.add(at).write(handle) };
        }
        *count = (*count).min(made);
        Ok(())
    }

    fn cuGraphNodeGetType(node: u64, kind: Out<i32>) |sim| { put(kind, sim.captures.node(node)?.kind) }
}
