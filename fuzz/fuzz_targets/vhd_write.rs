#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|plan: blockform_fuzz::BlockPlan| blockform_fuzz::vhd_write(&plan));
