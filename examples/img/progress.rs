//! Progress of a verb: a live bar for people, qemu-img's line for programs.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use blockform::convert::Progress;
use indicatif::{ProgressBar, ProgressStyle};

/// Display of the progress.
pub(crate) enum Meter {
    /// No display.
    Silent,
    /// A bar on standard error, for a person at a terminal.
    Bar(ProgressBar),
    /// `    (12.34/100%)` on standard output, or on standard error if the image goes to standard output. Each
    /// overwrites the one before, as programs that run `qemu-img convert -p` parse it.
    Line(Arc<Line>),
}

/// The line of `qemu-img`, in hundredths of a percent.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// Last number that was shown. Every thread reads it before it takes the lock.
    shown: AtomicU64,
    printing: Mutex<()>,
    on_stderr: bool,
}

impl Meter {
    pub(crate) fn new(wanted: bool, to_stdout: bool) -> Self {
        if !wanted {
            Meter::Silent
        } else if (to_stdout || io::stdout().is_terminal()) && io::stderr().is_terminal() {
            let bar = ProgressBar::new(0);
            let template = "{percent:>3}% [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            Meter::Bar(bar)
        } else {
            let line = Line {
                on_stderr: to_stdout,
                ..Line::default()
            };
            line.print(0);
            Meter::Line(Arc::new(line))
        }
    }

    /// Callback for the progress, unless there is no display.
    pub(crate) fn report(
        &self,
    ) -> Option<impl Fn(Progress) -> ControlFlow<()> + Send + Sync + use<>> {
        let shown: Box<dyn Fn(Progress) -> ControlFlow<()> + Send + Sync> = match self {
            Meter::Silent => return None,
            Meter::Bar(bar) => {
                let bar = bar.clone();
                Box::new(move |Progress { done, total, .. }| {
                    bar.set_length(total);
                    bar.set_position(done);
                    ControlFlow::Continue(())
                })
            }
            Meter::Line(line) => {
                let line = Arc::clone(line);
                Box::new(move |progress| {
                    line.update(progress);
                    ControlFlow::Continue(())
                })
            }
        };
        Some(shown)
    }

    /// Ends the display with a line of its own, at 100 % if the work is whole.
    pub(crate) fn finish(&self, whole: bool) {
        match self {
            Meter::Silent => {}
            Meter::Bar(bar) if whole => bar.finish(),
            Meter::Bar(bar) => bar.abandon(),
            Meter::Line(line) => {
                if whole {
                    line.show(10_000);
                }
                // A closed output does not stop the work.
                drop(line.out().write_all(b"\n"));
            }
        }
    }
}

impl Line {
    fn out(&self) -> Box<dyn Write> {
        match self.on_stderr {
            true => Box::new(io::stderr()),
            false => Box::new(io::stdout()),
        }
    }

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

    /// Returns true for a whole percent more than the last number, and for the end.
    fn is_news(&self, hundredths: u64) -> bool {
        let shown = self.shown.load(Ordering::Relaxed);
        hundredths >= shown + 100 || (hundredths == 10_000 && shown < 10_000)
    }

    fn print(&self, hundredths: u64) {
        self.shown.store(hundredths, Ordering::Relaxed);
        let mut out = self.out();
        let (whole, rest) = (hundredths / 100, hundredths % 100);
        let text = format!("    ({whole}.{rest:02}/100%)\r");
        let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        // A closed output does not stop the work.
        drop(printed);
    }
}
