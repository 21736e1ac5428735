//! An answer on its way down: its head, then its body piece by piece.
//!
//! If it breaks off, the browser's connection ends, so that nobody takes the part for the whole.

use std::pin::pin;

use actix_web::http::{Method, StatusCode};

use crate::access_log::chain;
use crate::context::Incomplete;
use crate::error::ApiError;
use crate::guard::{Access, Page};
use crate::http::buffer::{Buffer, append};
use crate::http::client::ResponseBodyError;
use crate::http::server::{ClientLeft, ServerConnection, WriteError};
use crate::proxy::call::Call;
use crate::proxy::response::{self, UrlRewriter};
use crate::proxy::upstream::Exchange;

impl Call<'_> {
    /// Passes an answer of `datahub`'s on, whose head is written in `head`. `peeked` is what has been read of its body already,
    /// if that is more than what came with the head.
    pub async fn relay(
        &self,
        exchange: &mut Exchange<'_>,
        head: Buffer,
        peeked: Option<&[u8]>,
        datahub: &str,
        downstream: &mut ServerConnection,
    ) {
        self.context.record_answer(exchange.response.status(), None);
        if let Err(broken) = self.stream(exchange, head, peeked, downstream).await {
            downstream.abort();
            self.context.record_incomplete(Incomplete::from(&broken));
            if let Broken::Upstream(error) = broken {
                let reason = chain(&error);
                log::warn!(datahub, reason; "an answer broke off");
            }
        }
    }

    /// The head of the answer, as the browser gets it, after deciding whether the connection goes on.
    ///
    /// # Errors
    /// `datahub_invalid_response` for an answer that cannot be passed on.
    pub fn write_head(
        &self,
        exchange: &Exchange<'_>,
        rewriter: &UrlRewriter<'_, impl Fn(&str) -> bool>,
        downstream: &mut ServerConnection,
    ) -> Result<Buffer, ApiError> {
        let (proxy, response, is_head) = (self.proxy, &exchange.response, *self.request.method() == Method::HEAD);
        downstream.decide_persistence(false, response.length.known().is_none());
        let mut out = proxy.pool.take();
        let status = StatusCode::from_u16(response.status()).expect("it was read as three digits");
        downstream.write_status_line(status, &mut out);
        response::write_fields(response, rewriter, is_head, self.access == Access::Download, &mut out)?;
        downstream.write_framing(response.content_length, &mut out);
        proxy.guard.harden(Page::None, &mut out);
        out.extend_from_slice(b"cache-control: private, no-store\r\nvary: Cookie, Accept-Encoding\r\n");
        self.context.write_session_field(&mut out);
        proxy.guard.write_cors(self.access, self.request.fields(), &mut out);
        if self.access == Access::Dev && !rewriter.more_fields.is_empty() {
            let names = rewriter.more_fields.join(", ");
            append(&mut out, [b"access-control-expose-headers: ", names.as_bytes(), b"\r\n"]);
        }
        downstream.end_head(self.context.id.as_bytes(), &proxy.clock, &mut out);
        Ok(out)
    }

    /// Passes on the head, which is in `out`, with what is there of the body, and then the rest.
    async fn stream(
        &self,
        exchange: &mut Exchange<'_>,
        mut out: Buffer,
        peeked: Option<&[u8]>,
        downstream: &mut ServerConnection,
    ) -> Result<(), Broken> {
        let start = peeked.unwrap_or_else(|| exchange.response.start());
        self.context.count_out(start.len());
        downstream.write_piece(&mut out, start).await?;
        while !exchange.response.body.is_done() {
            let next = downstream.unless_client_leaves(pin!(exchange.next_piece())).await??;
            let Some(piece) = next else { break };
            self.context.count_out(piece.len());
            downstream.write_piece(&mut out, &piece).await?;
        }
        Ok(downstream.end_body(&out).await?)
    }
}

/// Why an answer broke off after its head was sent.
enum Broken {
    Upstream(ResponseBodyError),
    Client(WriteError),
    Left,
}

impl From<ResponseBodyError> for Broken {
    fn from(error: ResponseBodyError) -> Self {
        Self::Upstream(error)
    }
}

impl From<WriteError> for Broken {
    fn from(error: WriteError) -> Self {
        Self::Client(error)
    }
}

impl From<ClientLeft> for Broken {
    fn from(_: ClientLeft) -> Self {
        Self::Left
    }
}

impl From<&Broken> for Incomplete {
    fn from(broken: &Broken) -> Self {
        match broken {
            Broken::Upstream(ResponseBodyError::Stalled) => Self::UpstreamStalled,
            Broken::Upstream(_) => Self::UpstreamBroke,
            Broken::Client(error) => (*error).into(),
            Broken::Left => Self::ClientGone,
        }
    }
}
