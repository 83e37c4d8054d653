//! Channels between processes, and the sockets that pass through them.
use std::io::{Error, ErrorKind};
use std::path::Path;
use std::sync::Arc;

use napi_derive::napi;

use super::{closed, Engine};
use crate::addon::completion_queue::Value;
use crate::addon::handles::EngineState;
use crate::error::{NetError, NetErrorCode};
use crate::handover::channel::{is_nothing_there, Channel, ChannelListener};
use crate::net::sharing::Sharing;
use crate::sync::lock;

/// The error of a channel.
fn failed(what: &str, error: &Error) -> NetError {
    let code = match error.kind() {
        _ if is_nothing_there(error) => NetErrorCode::Refused,
        ErrorKind::PermissionDenied => NetErrorCode::PermissionDenied,
        ErrorKind::AddrInUse => NetErrorCode::AddressInUse,
        _ => NetErrorCode::Reset,
    };
    NetError::new(code, format!("{what}: {error}"))
}

/// Channel, and the process id of the other side.
fn opened(state: &Arc<EngineState>, channel: Channel) -> Value {
    let pid = channel.pid.map_or(Value::Undefined, |pid| Value::Number(pid.into()));
    Value::Array(vec![state.insert(&state.channels, Arc::new(channel)), pid])
}

#[napi]
impl Engine {
    /// Returns a listener for channels at a path, which must not exist.
    #[napi]
    pub fn listen_channel(&self, op: f64, path: String) {
        let state = self.state.clone();
        self.state.run(op, false, async move {
            let listener = ChannelListener::bind(Path::new(&path)).map_err(|e| failed(&format!("Cannot listen on {path}"), &e))?;
            Ok(state.insert(&state.channel_listeners, Arc::new(listener)))
        });
    }

    /// Returns channel and process id; null once the listener is closed.
    #[napi]
    pub fn accept_channel(&self, op: f64, listener: f64) {
        let listener = lock(&self.state.channel_listeners).get(&(listener as u64)).cloned();
        let state = self.state.clone();
        self.state.run(op, false, async move {
            let Some(listener) = listener else { return Ok(Value::Null) };
            let accepted = listener.accept().await.map_err(|e| failed("Cannot accept a process", &e))?;
            Ok(accepted.map_or(Value::Null, |channel| opened(&state, channel)))
        });
    }

    #[napi]
    pub fn close_channel_listener(&self, listener: f64) {
        let listener = lock(&self.state.channel_listeners).remove(&(listener as u64));
        if let Some(listener) = listener {
            listener.close();
        }
    }

    /// Returns channel and process id.
    #[napi]
    pub fn connect_channel(&self, op: f64, path: String) {
        let state = self.state.clone();
        self.state.run(op, false, async move {
            let connected = Channel::connect(&path).await;
            let channel = connected.map_err(|e| failed(&format!("Cannot connect to {path}"), &e))?;
            Ok(opened(&state, channel))
        });
    }

    #[napi]
    pub fn send_to_channel(&self, op: f64, channel: f64, text: String) {
        let channel = self.channel(channel);
        self.state.run(op, false, async move {
            let sent = channel?.send(&text, &[]).await;
            sent.map_err(|e| failed("Cannot send to the other process", &e))?;
            Ok(Value::Undefined)
        });
    }

    /// Returns the next message; null once the other process has closed the channel, or has ended.
    #[napi]
    pub fn receive_from_channel(&self, op: f64, channel: f64) {
        let channel = self.channel(channel);
        self.state.run(op, false, async move {
            let received = channel?.receive().await;
            let received = received.map_err(|e| failed("Cannot receive from the other process", &e))?;
            Ok(received.map_or(Value::Null, |(text, _)| Value::Text(text)))
        });
    }

    #[napi]
    pub fn close_channel(&self, channel: f64) {
        let channel = lock(&self.state.channels).remove(&(channel as u64));
        if let Some(channel) = channel {
            channel.close();
        }
    }

    /// Sends copies of all listening sockets.
    #[napi]
    pub fn send_sockets(&self, op: f64, channel: f64) {
        let (channel, sockets) = (self.channel(channel), self.state.sockets.clone());
        self.state.run(op, false, async move {
            let channel = channel?;
            let sent = sockets.send(&channel).await;
            sent.map_err(|e| failed("Cannot pass the sockets on", &e))?;
            Ok(Value::Undefined)
        });
    }

    /// Receives sockets for the listeners that are opened later, which do not accept until `set_accepting`. Returns how many.
    #[napi]
    pub fn receive_sockets(&self, op: f64, channel: f64) {
        let (channel, sockets) = (self.channel(channel), self.state.sockets.clone());
        self.state.run(op, false, async move {
            let channel = channel?;
            let received = sockets.receive(&channel).await;
            let count = received.map_err(|e| failed("Cannot take the sockets over", &e))?;
            Ok(Value::Number(count as f64))
        });
    }

    /// Shares the addresses of listeners that are opened from now on with other processes; see [`Sharing`].
    #[napi]
    pub fn share_addresses(&self, directory: String, generation: u32, is_first: bool) {
        self.state.sockets.share(Sharing {
            directory: directory.into(),
            generation: generation as u8,
            is_first,
        });
    }

    /// Lets all listeners accept, or no longer.
    #[napi]
    pub fn set_accepting(&self, accepting: bool) {
        self.state.sockets.set_accepting(accepting);
    }

    /// Closes the listening sockets that the other process uses.
    #[napi]
    pub fn release_sockets(&self) {
        self.state.sockets.release();
    }

    /// Closes received sockets that no listener uses.
    #[napi]
    pub fn drop_unused_sockets(&self) {
        self.state.sockets.drop_unused();
    }

    fn channel(&self, channel: f64) -> Result<Arc<Channel>, NetError> {
        let channel = lock(&self.state.channels).get(&(channel as u64)).cloned();
        channel.ok_or_else(|| closed("channel"))
    }
}
