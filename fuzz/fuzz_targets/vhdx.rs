#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|patches: Vec<blockform_fuzz::Patch>| blockform_fuzz::vhdx(&patches));
