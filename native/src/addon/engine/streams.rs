//! Reads and writes of streams.
use bytes::Bytes;
use napi_derive::napi;

use super::{closed, Engine};
use crate::addon::completion_queue::Value;
use crate::error::{NetError, NetErrorCode};
use crate::stream::reader::ReadHalf;
use crate::stream::writer::WriteHalf;
use crate::stream::{stdio, Halves};
use crate::sync::lock;

#[napi]
impl Engine {
    /// Returns a stream of standard input and output, which are read from now on.
    #[napi]
    pub fn open_standard_streams(&self, op: f64) {
        let state = self.state.clone();
        self.state.run(op, false, async move {
            let (reader, writer) =
                stdio::open(0, 1).map_err(|error| NetError::new(NetErrorCode::Limit, format!("Cannot start a thread: {error}")))?;
            Ok(state.add_stream(Halves::new(ReadHalf::Stdio(reader), WriteHalf::Stdio(writer))))
        });
    }

    #[napi]
    pub fn read(&self, op: f64, stream: f64) {
        let promise = self.state.promise(op);
        if let Some(stream) = self.state.stream(stream) {
            stream.read(self.state.runtime, promise);
        }
    }

    /// Puts bytes back, to be read next.
    #[napi]
    pub fn unread(&self, stream: f64, data: &[u8]) {
        if let Some(stream) = self.state.stream(stream) {
            stream.unread(self.state.runtime, Bytes::copy_from_slice(data));
        }
    }

    #[napi]
    pub fn write(&self, op: f64, stream: f64, data: &[u8]) {
        let promise = self.state.promise(op);
        if let Some(stream) = self.state.stream(stream) {
            stream.write(self.state.runtime, Bytes::copy_from_slice(data), promise);
        }
    }

    /// Settles when the peer resets the stream, even if nothing reads from it.
    #[napi]
    pub fn when_reset(&self, op: f64, stream: f64) {
        let reset = self.state.stream(stream).and_then(|stream| stream.reset_by_peer());
        self.state.run(op, true, async move {
            let error = reset.ok_or_else(|| closed("stream"))?.await;
            Ok(Value::from(&error))
        });
    }

    #[napi]
    pub fn close_write(&self, stream: f64) {
        if let Some(stream) = self.state.stream(stream) {
            stream.close_write(self.state.runtime);
        }
    }

    #[napi]
    pub fn reset(&self, stream: f64, code: u32) {
        if let Some(stream) = self.state.stream(stream) {
            stream.reset(code);
        }
    }

    #[napi]
    pub fn stop_read(&self, stream: f64, code: u32) {
        if let Some(stream) = self.state.stream(stream) {
            stream.stop_read(code);
        }
    }

    /// Closes the stream gracefully and frees its handle.
    #[napi]
    pub fn close_stream(&self, stream: f64) {
        let stream = lock(&self.state.streams).remove(&(stream as u64));
        if let Some(stream) = stream {
            stream.close(self.state.runtime);
        }
    }
}
