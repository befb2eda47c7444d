#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|plan: blockform_fuzz::VmdkPlan| blockform_fuzz::vmdk_write(&plan));
