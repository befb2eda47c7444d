#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|plan: blockform_fuzz::VhdxPlan| blockform_fuzz::vhdx_write(&plan));
