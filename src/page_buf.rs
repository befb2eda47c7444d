//! Memory to read into and to write from.

/// Page-aligned memory: the kernel copies to and from it markedly faster.
#[derive(Debug)]
pub(crate) struct PageBuf {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

const PAGE: usize = 4096;

impl PageBuf {
    pub(crate) fn new(len: usize) -> Self {
        let memory = vec![0; len + PAGE];
        let start = memory.as_ptr().align_offset(PAGE).min(PAGE);
        PageBuf { memory, start, len }
    }

    pub(crate) fn get(&self, at: usize, len: usize) -> &[u8] {
        let end = (at + len).min(self.len);
        self.memory
            .get(self.start + at..self.start + end)
            .unwrap_or_default()
    }

    pub(crate) fn get_mut(&mut self, at: usize, len: usize) -> &mut [u8] {
        let end = (at + len).min(self.len);
        self.memory
            .get_mut(self.start + at..self.start + end)
            .unwrap_or_default()
    }
}
