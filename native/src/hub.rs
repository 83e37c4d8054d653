//! The way back into JavaScript: every call is a number that JavaScript chose, and every result goes through one queue that wakes the
//! JavaScript thread once a batch. This is the only file that speaks raw Node-API.
use std::ffi::{c_char, c_void};
use std::ptr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use napi::bindgen_prelude::*;
use napi::sys;

use crate::error::{Fault, FaultCode};
use crate::lock;

/// A value on its way to JavaScript.
#[derive(Debug)]
pub enum Js {
    Undefined,
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    /// Bytes as a string, one character each (ISO 8859-1).
    Latin1(Bytes),
    Bytes(Bytes),
    Array(Vec<Js>),
}

impl<T: Into<Js>> From<Option<T>> for Js {
    fn from(value: Option<T>) -> Self {
        value.map_or(Js::Undefined, Into::into)
    }
}

impl From<&Fault> for Js {
    fn from(fault: &Fault) -> Self {
        Js::Array(vec![
            Js::Text(fault.code.as_str().into()),
            Js::Text(fault.message.clone()),
            fault.app_code.map_or(Js::Undefined, |c| Js::Number(c as f64)),
            Js::Bool(fault.remote),
        ])
    }
}

pub type Outcome = std::result::Result<Js, Fault>;

/// The queue of results of one JavaScript environment.
#[derive(Default)]
pub struct Hub {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    done: Vec<(f64, Outcome)>,
    /// JavaScript was woken and has not looked yet.
    woken: bool,
    /// It will be woken after [`AT_LAST`], where it was not before.
    timed: bool,
    wake: Option<Wake>,
}

impl State {
    /// Whether somebody is to hear of it.
    fn add(&mut self, op: f64, outcome: Outcome) -> bool {
        // without an environment, whoever waited is gone with it
        let heard = self.wake.is_some() || cfg!(test);
        if heard {
            self.done.push((op, outcome));
        }
        heard
    }

    fn wake(&mut self) {
        let Some(Wake(wake)) = self.wake else { return };
        if !std::mem::replace(&mut self.woken, true) {
            // SAFETY: alive while it is in the state, whose lock is held; does not block
            unsafe { sys::napi_call_threadsafe_function(wake, ptr::null_mut(), sys::ThreadsafeFunctionCallMode::nonblocking) };
        }
    }
}

/// How long a result that can wait waits for one that cannot.
const AT_LAST: Duration = Duration::from_millis(2);

struct Wake(sys::napi_threadsafe_function);
// SAFETY: a thread-safe function is made to be called from any thread. It is used under the mutex only, and taken out under it by the
// finalizer before Node-API frees it.
unsafe impl Send for Wake {}

/// A result that JavaScript waits for. Settled exactly once: dropping it settles it too, so no promise outlives the task that owed it.
pub struct Promise {
    hub: Arc<Hub>,
    op: f64,
    on_drop: Option<Fault>,
}

impl Promise {
    pub fn new(hub: &Arc<Hub>, op: f64) -> Self {
        Self {
            hub: hub.clone(),
            op,
            on_drop: Some(Fault::closed()),
        }
    }

    /// What it is settled with when it is dropped unsettled; by default, `closed`.
    pub fn or(mut self, fault: Fault) -> Self {
        self.on_drop = Some(fault);
        self
    }

    pub fn settle(mut self, outcome: Outcome) {
        self.on_drop = None;
        self.hub.push(self.op, outcome);
    }

    /// As [`Promise::settle`], but JavaScript hears of it with the next result that it is woken for, or after [`AT_LAST`]. On the runtime.
    pub fn settle_later(mut self, value: Js) {
        self.on_drop = None;
        self.hub.push_later(self.op, Ok(value));
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let Some(fault) = self.on_drop.take() else { return };
        let fault = if std::thread::panicking() {
            Fault::new(FaultCode::Internal, "A task of the native engine panicked")
        } else {
            fault
        };
        self.hub.push(self.op, Err(fault));
    }
}

impl Hub {
    /// `callback` is called on the JavaScript thread with a flat array: number of the call, error or undefined, value, and so on.
    pub fn new(env: &Env, callback: &Function<'_, Unknown<'_>, ()>) -> Result<Arc<Self>> {
        let hub = Arc::<Self>::default();
        let context = Arc::into_raw(hub.clone()) as *mut c_void;
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
            drop(unsafe { Arc::from_raw(context as *const Hub) });
            return Err(Error::from_reason(format!(
                "napi_create_threadsafe_function failed with status {status}"
            )));
        }
        // SAFETY: just made, on its own thread. Until a call is under way it does not keep the program alive.
        unsafe { sys::napi_unref_threadsafe_function(env.raw(), wake) };
        lock(&hub.state).wake = Some(Wake(wake));
        Ok(hub)
    }

    /// Whether results still to come keep the program alive.
    pub fn hold(&self, env: &Env, on: bool) {
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

    /// JavaScript is called no more: what the callback would use is gone. Deno frees it, when a thread of JavaScript ends, before it makes the
    /// last calls.
    pub fn detach(&self) {
        let mut state = lock(&self.state);
        state.wake = None;
        state.done.clear();
    }

    fn push(&self, op: f64, outcome: Outcome) {
        let mut state = lock(&self.state);
        if state.add(op, outcome) {
            state.wake();
        }
    }

    fn push_later(self: &Arc<Self>, op: f64, outcome: Outcome) {
        let mut state = lock(&self.state);
        if !state.add(op, outcome) || state.woken || std::mem::replace(&mut state.timed, true) {
            return;
        }
        let hub = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(AT_LAST).await;
            let mut state = lock(&hub.state);
            state.timed = false;
            if !state.done.is_empty() {
                state.wake();
            }
        });
    }
}

#[cfg(test)]
impl Hub {
    /// A hub without JavaScript, which keeps its results.
    pub fn detached() -> Arc<Self> {
        Arc::default()
    }

    /// The codes of the calls settled so far; `ok` where they went well.
    pub fn settled(&self) -> Vec<(u64, &'static str)> {
        lock(&self.state)
            .done
            .iter()
            .map(|(op, outcome)| (*op as u64, outcome.as_ref().map_or_else(|fault| fault.code.as_str(), |_| "ok")))
            .collect()
    }
}

unsafe extern "C" fn finalize(_env: sys::napi_env, data: *mut c_void, _hint: *mut c_void) {
    // SAFETY: the count that `Hub::new` gave away
    let hub = unsafe { Arc::from_raw(data as *const Hub) };
    lock(&hub.state).wake = None;
}

unsafe extern "C" fn call_js(env: sys::napi_env, callback: sys::napi_value, context: *mut c_void, _data: *mut c_void) {
    // SAFETY: `context` is the count that `finalize` gives back, and that has not run yet
    let hub = unsafe { &*(context as *const Hub) };
    let done = {
        let mut state = lock(&hub.state);
        state.woken = false;
        if state.wake.is_none() {
            return;
        }
        std::mem::take(&mut state.done)
    };
    if env.is_null() || callback.is_null() || done.is_empty() {
        return;
    }
    // SAFETY: on the JavaScript thread, inside a handle scope that Node-API opened for this call
    unsafe {
        let mut batch = ptr::null_mut();
        sys::napi_create_array_with_length(env, done.len() * 3, &mut batch);
        for (i, (op, outcome)) in done.into_iter().enumerate() {
            // one scope a result: a large batch must not pile up handles
            let mut scope = ptr::null_mut();
            sys::napi_open_handle_scope(env, &mut scope);
            let at = (i * 3) as u32;
            set(env, batch, at, Js::Number(op));
            match outcome {
                Ok(value) => set(env, batch, at + 2, value),
                Err(fault) => set(env, batch, at + 1, Js::from(&fault)),
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
unsafe fn set(env: sys::napi_env, array: sys::napi_value, index: u32, value: Js) {
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
unsafe fn to_js(env: sys::napi_env, value: Js) -> sys::napi_value {
    let mut out = ptr::null_mut();
    // SAFETY: the caller's promise; each pointer and length are those of one slice
    unsafe {
        match value {
            Js::Undefined => sys::napi_get_undefined(env, &mut out),
            Js::Null => sys::napi_get_null(env, &mut out),
            Js::Bool(v) => sys::napi_get_boolean(env, v, &mut out),
            Js::Number(v) => sys::napi_create_double(env, v, &mut out),
            Js::Text(v) => return text(env, &v),
            Js::Latin1(v) => sys::napi_create_string_latin1(env, v.as_ptr() as *const c_char, v.len() as isize, &mut out),
            Js::Bytes(v) => return bytes(env, &v),
            Js::Array(items) => {
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

/// A Uint8Array with its own copy.
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
        let hub = Hub::detached();
        Promise::new(&hub, 1.0).settle(Ok(Js::Null));
        drop(Promise::new(&hub, 2.0));
        drop(Promise::new(&hub, 3.0).or(Fault::cancelled()));
        assert_eq!(hub.settled(), [(1, "ok"), (2, "closed"), (3, "cancelled")]);
    }

    #[tokio::test]
    async fn a_task_that_panics_settles_its_promise_as_internal() {
        let hub = Hub::detached();
        let promise = Promise::new(&hub, 1.0);
        let task = tokio::spawn(async move {
            let _promise = promise;
            panic!("on purpose");
        });
        assert!(task.await.is_err());
        assert_eq!(hub.settled(), [(1, "internal")]);
    }

    #[tokio::test]
    async fn a_task_that_is_aborted_settles_its_promise() {
        let hub = Hub::detached();
        let promise = Promise::new(&hub, 1.0).or(Fault::cancelled());
        let task = tokio::spawn(async move {
            let _promise = promise;
            std::future::pending::<()>().await;
        });
        tokio::task::yield_now().await;
        task.abort();
        assert!(task.await.is_err());
        assert_eq!(hub.settled(), [(1, "cancelled")]);
    }
}
