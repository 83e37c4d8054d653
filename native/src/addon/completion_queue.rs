//! The results of calls, on their way to JavaScript. JavaScript chooses a number for each call; results are queued and wake the JavaScript
//! thread once per batch. Only this file uses raw Node-API.
use std::ffi::{c_char, c_void};
use std::ptr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use napi::bindgen_prelude::*;
use napi::sys;

use crate::error::{NetError, NetErrorCode};
use crate::sync::lock;

/// A value for JavaScript.
#[derive(Debug)]
pub enum Value {
    Undefined,
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    /// Bytes as a string, one character each (ISO 8859-1).
    Latin1(Bytes),
    Bytes(Bytes),
    Array(Vec<Value>),
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Value::Undefined, Into::into)
    }
}

impl From<&NetError> for Value {
    fn from(error: &NetError) -> Self {
        Value::Array(vec![
            Value::Text(error.code.as_str().into()),
            Value::Text(error.message.clone()),
            error.app_code.map_or(Value::Undefined, |c| Value::Number(c as f64)),
            Value::Bool(error.remote),
        ])
    }
}

pub type CallResult = std::result::Result<Value, NetError>;

/// The queue of results of one JavaScript environment.
#[derive(Default)]
pub struct CompletionQueue {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    results: Vec<(f64, CallResult)>,
    /// JavaScript was woken and has not taken the results yet.
    woken: bool,
    /// A wake-up after [`MAX_BATCH_DELAY`] is scheduled.
    deferred_wake: bool,
    wake: Option<Wake>,
}

impl State {
    /// Returns whether JavaScript can receive the result.
    fn add(&mut self, op: f64, result: CallResult) -> bool {
        // without an environment nothing waits for the result
        let has_environment = self.wake.is_some() || cfg!(test);
        if has_environment {
            self.results.push((op, result));
        }
        has_environment
    }

    fn wake(&mut self) {
        let Some(Wake(wake)) = self.wake else { return };
        if !std::mem::replace(&mut self.woken, true) {
            // SAFETY: alive while it is in the state, whose lock is held; does not block
            unsafe { sys::napi_call_threadsafe_function(wake, ptr::null_mut(), sys::ThreadsafeFunctionCallMode::nonblocking) };
        }
    }
}

/// Maximum time that a deferred result waits for another one.
const MAX_BATCH_DELAY: Duration = Duration::from_millis(2);

struct Wake(sys::napi_threadsafe_function);
// SAFETY: a thread-safe function is made to be called from any thread. It is used under the mutex only, and taken out under it by the
// finalizer before Node-API frees it.
unsafe impl Send for Wake {}

/// The pending result of a call. It is settled exactly once; dropping it settles it too, so no promise outlives its task.
pub struct Promise {
    completions: Arc<CompletionQueue>,
    op: f64,
    on_drop: Option<NetError>,
}

impl Promise {
    pub fn new(completions: &Arc<CompletionQueue>, op: f64) -> Self {
        Self {
            completions: completions.clone(),
            op,
            on_drop: Some(NetError::closed()),
        }
    }

    /// Sets the error to settle with when it is dropped; `closed` by default.
    pub fn or(mut self, error: NetError) -> Self {
        self.on_drop = Some(error);
        self
    }

    pub fn settle(mut self, result: CallResult) {
        self.on_drop = None;
        self.completions.push(self.op, result);
    }

    /// As [`Promise::settle`], but does not wake JavaScript by itself: the result is delivered with the next one, or after
    /// [`MAX_BATCH_DELAY`]. Requires the runtime.
    pub fn settle_deferred(mut self, value: Value) {
        self.on_drop = None;
        self.completions.push_deferred(self.op, Ok(value));
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let Some(error) = self.on_drop.take() else { return };
        let error = if std::thread::panicking() {
            NetError::new(NetErrorCode::Internal, "A task of the native engine panicked")
        } else {
            error
        };
        self.completions.push(self.op, Err(error));
    }
}

impl CompletionQueue {
    /// `callback` is called on the JavaScript thread with a flat array: number of the call, error or undefined, value, and so on.
    pub fn new(env: &Env, callback: &Function<'_, Unknown<'_>, ()>) -> Result<Arc<Self>> {
        let completions = Arc::<Self>::default();
        let context = Arc::into_raw(completions.clone()) as *mut c_void;
        let mut wake = ptr::null_mut();
        // SAFETY: `env` and `callback` are of the call we are in; `context` is one count of the Arc, given back by `finalize`, which
        // Node-API calls once, after the last `call_js`.
        let status = unsafe {
            sys::napi_create_threadsafe_function(
                env.raw(),
                callback.raw(),
                ptr::null_mut(),
                text(env.raw(), "reverse-http"),
                0,
                1,
                context,
                Some(finalize),
                context,
                Some(call_js),
                &mut wake,
            )
        };
        if status != sys::Status::napi_ok {
            // SAFETY: nothing took the count over
            drop(unsafe { Arc::from_raw(context as *const CompletionQueue) });
            return Err(Error::from_reason(format!(
                "napi_create_threadsafe_function failed with status {status}"
            )));
        }
        // SAFETY: just made, on its own thread. Until a call is under way it does not keep the program alive.
        unsafe { sys::napi_unref_threadsafe_function(env.raw(), wake) };
        lock(&completions.state).wake = Some(Wake(wake));
        Ok(completions)
    }

    /// Sets whether pending results keep the process alive.
    pub fn set_ref(&self, env: &Env, on: bool) {
        if let Some(Wake(wake)) = lock(&self.state).wake {
            // SAFETY: called on the JavaScript thread, and the function is alive while it is in the state
            unsafe {
                match on {
                    true => sys::napi_ref_threadsafe_function(env.raw(), wake),
                    false => sys::napi_unref_threadsafe_function(env.raw(), wake),
                };
            }
        }
    }

    /// Stops calling JavaScript. When a thread ends, Deno frees what the callback uses before it makes the last calls.
    pub fn detach(&self) {
        let mut state = lock(&self.state);
        state.wake = None;
        state.results.clear();
    }

    fn push(&self, op: f64, result: CallResult) {
        let mut state = lock(&self.state);
        if state.add(op, result) {
            state.wake();
        }
    }

    fn push_deferred(self: &Arc<Self>, op: f64, result: CallResult) {
        let mut state = lock(&self.state);
        if !state.add(op, result) || state.woken || std::mem::replace(&mut state.deferred_wake, true) {
            return;
        }
        let completions = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(MAX_BATCH_DELAY).await;
            let mut state = lock(&completions.state);
            state.deferred_wake = false;
            if !state.results.is_empty() {
                state.wake();
            }
        });
    }
}

#[cfg(test)]
impl CompletionQueue {
    /// A queue without JavaScript, which keeps its results.
    pub fn detached() -> Arc<Self> {
        Arc::default()
    }

    /// The calls settled so far: `ok` or the code of the error.
    pub fn settled(&self) -> Vec<(u64, &'static str)> {
        lock(&self.state)
            .results
            .iter()
            .map(|(op, result)| (*op as u64, result.as_ref().map_or_else(|error| error.code.as_str(), |_| "ok")))
            .collect()
    }
}

unsafe extern "C" fn finalize(_env: sys::napi_env, data: *mut c_void, _hint: *mut c_void) {
    // SAFETY: the count that `CompletionQueue::new` gave away
    let completions = unsafe { Arc::from_raw(data as *const CompletionQueue) };
    lock(&completions.state).wake = None;
}

unsafe extern "C" fn call_js(env: sys::napi_env, callback: sys::napi_value, context: *mut c_void, _data: *mut c_void) {
    // SAFETY: `context` is the count that `finalize` gives back, and that has not run yet
    let completions = unsafe { &*(context as *const CompletionQueue) };
    let results = {
        let mut state = lock(&completions.state);
        state.woken = false;
        if state.wake.is_none() {
            return;
        }
        std::mem::take(&mut state.results)
    };
    if env.is_null() || callback.is_null() || results.is_empty() {
        return;
    }
    // SAFETY: on the JavaScript thread, inside a handle scope that Node-API opened for this call
    unsafe {
        let mut batch = ptr::null_mut();
        sys::napi_create_array_with_length(env, results.len() * 3, &mut batch);
        for (i, (op, result)) in results.into_iter().enumerate() {
            // one scope per result, so that a large batch does not accumulate handles
            let mut scope = ptr::null_mut();
            sys::napi_open_handle_scope(env, &mut scope);
            let at = (i * 3) as u32;
            set(env, batch, at, Value::Number(op));
            match result {
                Ok(value) => set(env, batch, at + 2, value),
                Err(error) => set(env, batch, at + 1, Value::from(&error)),
            }
            sys::napi_close_handle_scope(env, scope);
        }
        let mut this = ptr::null_mut();
        sys::napi_get_undefined(env, &mut this);
        // the callback never throws; if it does, the runtime reports it as an uncaught exception
        sys::napi_call_function(env, this, callback, 1, &batch, ptr::null_mut());
    }
}

/// SAFETY: on the JavaScript thread, within a handle scope.
unsafe fn set(env: sys::napi_env, array: sys::napi_value, index: u32, value: Value) {
    // SAFETY: the caller's promise is what Node-API asks for
    unsafe {
        let value = to_js(env, value);
        sys::napi_set_element(env, array, index, value);
    }
}

/// SAFETY: on the JavaScript thread, within a handle scope.
unsafe fn text(env: sys::napi_env, value: &str) -> sys::napi_value {
    let mut out = ptr::null_mut();
    // SAFETY: the caller's promise; the pointer and the length are those of one `str`
    unsafe { sys::napi_create_string_utf8(env, value.as_ptr() as *const c_char, value.len() as isize, &mut out) };
    out
}

/// SAFETY: on the JavaScript thread, within a handle scope. A value that cannot be made (out of memory) stays a null pointer, which
/// Node-API refuses wherever it is used next.
unsafe fn to_js(env: sys::napi_env, value: Value) -> sys::napi_value {
    let mut out = ptr::null_mut();
    // SAFETY: the caller's promise; each pointer and length are those of one slice
    unsafe {
        match value {
            Value::Undefined => sys::napi_get_undefined(env, &mut out),
            Value::Null => sys::napi_get_null(env, &mut out),
            Value::Bool(v) => sys::napi_get_boolean(env, v, &mut out),
            Value::Number(v) => sys::napi_create_double(env, v, &mut out),
            Value::Text(v) => return text(env, &v),
            Value::Latin1(v) => sys::napi_create_string_latin1(env, v.as_ptr() as *const c_char, v.len() as isize, &mut out),
            Value::Bytes(v) => return bytes(env, &v),
            Value::Array(items) => {
                let status = sys::napi_create_array_with_length(env, items.len(), &mut out);
                for (i, item) in items.into_iter().enumerate() {
                    set(env, out, i as u32, item);
                }
                status
            }
        };
    }
    out
}

/// A Uint8Array with its own copy of the bytes.
///
/// SAFETY: on the JavaScript thread, within a handle scope.
unsafe fn bytes(env: sys::napi_env, value: &[u8]) -> sys::napi_value {
    let (mut data, mut buffer, mut out) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
    // SAFETY: the caller's promise; the new buffer has room for `value`, and nothing else knows it yet
    unsafe {
        if sys::napi_create_arraybuffer(env, value.len(), &mut data, &mut buffer) == sys::Status::napi_ok && !data.is_null() {
            ptr::copy_nonoverlapping(value.as_ptr(), data as *mut u8, value.len());
        }
        sys::napi_create_typedarray(env, sys::TypedarrayType::uint8_array, value.len(), buffer, 0, &mut out);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_is_settled_once_however_it_ends() {
        let completions = CompletionQueue::detached();
        Promise::new(&completions, 1.0).settle(Ok(Value::Null));
        drop(Promise::new(&completions, 2.0));
        drop(Promise::new(&completions, 3.0).or(NetError::cancelled()));
        assert_eq!(completions.settled(), [(1, "ok"), (2, "closed"), (3, "cancelled")]);
    }

    #[tokio::test]
    async fn a_task_that_panics_settles_its_promise_as_internal() {
        let completions = CompletionQueue::detached();
        let promise = Promise::new(&completions, 1.0);
        let task = tokio::spawn(async move {
            let _promise = promise;
            panic!("on purpose");
        });
        assert!(task.await.is_err());
        assert_eq!(completions.settled(), [(1, "internal")]);
    }

    #[tokio::test]
    async fn a_task_that_is_aborted_settles_its_promise() {
        let completions = CompletionQueue::detached();
        let promise = Promise::new(&completions, 1.0).or(NetError::cancelled());
        let task = tokio::spawn(async move {
            let _promise = promise;
            std::future::pending::<()>().await;
        });
        tokio::task::yield_now().await;
        task.abort();
        assert!(task.await.is_err());
        assert_eq!(completions.settled(), [(1, "cancelled")]);
    }
}
