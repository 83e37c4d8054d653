//! See `targets/`.
#![cfg_attr(fuzzing, no_main)]
#[path = "../targets/mod.rs"]
mod targets;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::datagrams(data));

/// Runs one input from a file, for a debugger.
#[cfg(not(fuzzing))]
fn main() {
    let file = std::env::args().nth(1).expect("a file");
    targets::datagrams(&std::fs::read(file).expect("a file that can be read"));
}
