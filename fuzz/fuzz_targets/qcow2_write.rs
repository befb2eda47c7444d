#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|plan: blockform_fuzz::Plan| blockform_fuzz::qcow2_write(&plan));
