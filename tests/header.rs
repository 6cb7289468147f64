//! `include/hbmalloc.h` is generated and checked in: whoever changes the C interface sees the change
//! in review, and nobody builds against a header that the library does not keep.
#![allow(missing_docs)]

use std::path::Path;

/// The files whose exports and types are the interface.
const FACES: [&str; 27] = [
    "capi/status.rs",
    "capi/options.rs",
    "capi/descriptor.rs",
    "capi/allocator.rs",
    "capi/arena.rs",
    "capi/device.rs",
    "capi/streams.rs",
    "capi/stats.rs",
    "capi/block_stats.rs",
    "capi/activity.rs",
    "capi/tags.rs",
    "capi/limits.rs",
    "capi/cells.rs",
    "capi/graphs.rs",
    "capi/residency.rs",
    "capi/host.rs",
    "capi/copies.rs",
    "capi/python.rs",
    "capi/host_buffer.rs",
    "capi/slab.rs",
    "capi/objects.rs",
    "capi/host_nodes.rs",
    "capi/sharing.rs",
    "torch/hooks.rs",
    "torch/segments.rs",
    "torch/cache_info.rs",
    "torch/saver/exports.rs",
];

/// The expanded entry points of torch are declared by a macro, which cbindgen does not look into.
const TORCH_SOURCES: [(&str, &str); 7] = [
    (
        "hbm",
        "what the option `backend` names; segments, where that is the pool, from what the pool is over,\n// since who divides up segments keeps freed memory already",
    ),
    ("pool", "the caching pool"),
    ("device", "synchronous device memory"),
    ("managed", "managed memory"),
    ("async", "the stream-ordered pool"),
    ("vmm", "virtual memory"),
    ("pinned", "pinned memory of the host"),
];

fn torch_entry_points() -> String {
    let mut text = String::from(
        "\n// Entry points with the signatures of torch.cuda.memory.CUDAPluggableAllocator. X_malloc returns NULL\n// for size 0; on failure it raises torch.OutOfMemoryError or RuntimeError where torch is in the\n// process, and returns NULL elsewhere. X_segment_malloc serves torch.cuda.MemPool, vLLM and CuPy: it\n// returns NULL on failure and never raises. X_free trusts the library's own record over size, device\n// and stream, and reports and ignores what is no block. Until hbm_torch_set_hooked says that streams are\n// told of, it takes a block back behind all work of the device; hbm_allocator_deallocate, behind the\n// streams named for the block.\n",
    );
    for (prefix, what) in TORCH_SOURCES {
        text += &format!(
            "\n// From {what}.\nvoid *{prefix}_malloc(size_t size, int device, void *stream);\nvoid {prefix}_free(void *address, size_t size, int device, void *stream);\nvoid *{prefix}_segment_malloc(size_t size, int device, void *stream);\nvoid {prefix}_segment_free(void *address, size_t size, int device, void *stream);\n"
        );
    }
    text
}

fn generate() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    config.trailer = None;
    let mut bytes = Vec::new();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in FACES {
        builder = builder.with_src(root.join("src").join(source));
    }
    builder.generate().unwrap().write(&mut bytes);
    let header = String::from_utf8(bytes)
        .unwrap()
        .replace("// # Safety\n// ", "// Required: ");
    let end = "\n#ifdef __cplusplus\n}  // extern \"C\"";
    assert_eq!(header.matches(end).count(), 1, "{header}");
    header.replace(end, &(torch_entry_points() + end))
}

#[test]
fn the_checked_in_header_is_what_the_code_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/hbmalloc.h");
    let generated = generate();
    if std::env::var_os("HBMALLOC_UPDATE_HEADER").is_some() {
        std::fs::write(&path, &generated).unwrap();
    }
    let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        checked_in == generated,
        "include/hbmalloc.h differs from the code: run `HBMALLOC_UPDATE_HEADER=1 cargo test --test header` and look at the difference"
    );
}
