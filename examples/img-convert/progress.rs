//! How far a conversion is: a live bar for people, qemu-img's line for programs.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use blockform::convert::{ConvertOptions, Progress};
use indicatif::{ProgressBar, ProgressStyle};

/// Shows how far a conversion is.
pub(crate) enum Meter {
    /// Nobody wants to know.
    Silent,
    /// A bar on standard error, for a person at a terminal.
    Bar(ProgressBar),
    /// `    (12.34/100%)` on standard output, each over the one before, as programs that run
    /// `qemu-img convert -p` parse it.
    Line(Arc<Line>),
}

/// The line that is shown, in hundredths of a percent.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// What was shown last. It is looked at before the lock is taken, by every thread with news.
    shown: AtomicU64,
    printing: Mutex<()>,
}

impl Meter {
    pub(crate) fn new(wanted: bool) -> Self {
        if !wanted {
            Meter::Silent
        } else if io::stdout().is_terminal() && io::stderr().is_terminal() {
            let bar = ProgressBar::new(0);
            let template = "{percent:>3}% [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            Meter::Bar(bar)
        } else {
            let line = Line::default();
            line.print(0);
            Meter::Line(Arc::new(line))
        }
    }

    /// Makes the conversion tell how far it is.
    pub(crate) fn attach(&self, options: ConvertOptions) -> ConvertOptions {
        match self {
            Meter::Silent => options,
            Meter::Bar(bar) => {
                let bar = bar.clone();
                options.progress(move |Progress { done, total, .. }| {
                    bar.set_length(total);
                    bar.set_position(done);
                })
            }
            Meter::Line(line) => {
                let line = Arc::clone(line);
                options.progress(move |progress| line.update(progress))
            }
        }
    }

    /// Leaves what was shown last on a line of its own; that is the end if all went well.
    pub(crate) fn finish(&self, whole: bool) {
        match self {
            Meter::Silent => {}
            Meter::Bar(bar) if whole => bar.finish(),
            Meter::Bar(bar) => bar.abandon(),
            Meter::Line(line) => {
                if whole {
                    line.show(10_000);
                }
                // Who does not read how far it is does not stop the conversion.
                drop(io::stdout().write_all(b"\n"));
            }
        }
    }
}

impl Line {
    fn update(&self, Progress { done, total, .. }: Progress) {
        let hundredths = match total {
            0 => 10_000,
            total => u128::from(done) * 10_000 / u128::from(total),
        };
        self.show(u64::try_from(hundredths).unwrap_or(10_000).min(10_000));
    }

    fn show(&self, hundredths: u64) {
        if self.is_news(hundredths) {
            let _lock = self.printing.lock().unwrap_or_else(PoisonError::into_inner);
            if self.is_news(hundredths) {
                self.print(hundredths);
            }
        }
    }

    /// Whether it is a whole percent more than what is shown, or the end.
    fn is_news(&self, hundredths: u64) -> bool {
        let shown = self.shown.load(Ordering::Relaxed);
        hundredths >= shown + 100 || (hundredths == 10_000 && shown < 10_000)
    }

    fn print(&self, hundredths: u64) {
        self.shown.store(hundredths, Ordering::Relaxed);
        let mut out = io::stdout().lock();
        let (whole, rest) = (hundredths / 100, hundredths % 100);
        let printed = write!(out, "    ({whole}.{rest:02}/100%)\r").and_then(|()| out.flush());
        // Who does not read how far it is does not stop the conversion.
        drop(printed);
    }
}
