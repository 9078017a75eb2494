//! Benchmarks. Criterion measures parts (`cargo bench -p flumen-benches`), `cargo xtask perf` the
//! whole beside its peers; `rpc_echo` is the ceiling that the RPC layer alone allows.
#![forbid(unsafe_code)]
