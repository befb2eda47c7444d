//! Contexts that are costly to make, kept for the next user.

use std::fmt;
use std::sync::Mutex;

use crate::lock::lock;

/// Contexts of one kind, as many as were ever in use at once.
pub(crate) struct Pool<T>(Mutex<Vec<T>>);

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Pool(Mutex::default())
    }
}

impl<T> Pool<T> {
    /// Runs `work` with a context, which `make` makes if all others are in use. A context whose work
    /// fails may be in any state: it does not come back.
    pub(crate) fn with<R, E>(
        &self,
        make: impl FnOnce() -> Result<T, E>,
        work: impl FnOnce(&mut T) -> Result<R, E>,
    ) -> Result<R, E> {
        let free = lock(&self.0).pop();
        let mut context = match free {
            Some(context) => context,
            None => make()?,
        };
        let result = work(&mut context)?;
        lock(&self.0).push(context);
        Ok(result)
    }
}

impl<T> fmt::Debug for Pool<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}
