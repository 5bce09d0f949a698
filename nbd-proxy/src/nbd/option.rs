//! Payloads of negotiation options: lengths inside lengths, each checked before it is followed.

use super::wire::MAX_STRING;

/// Why a payload was not understood; the text goes back to the client with ERR_INVALID.
pub type Malformed = &'static str;

/// Takes big-endian fields off the front of a payload.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(len).ok_or("the option's payload is too short")?;
        self.0 = rest;
        Ok(head)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.take(2).map(|bytes| bytes.iter().fold(0, |value, byte| value << 8 | u16::from(*byte)))
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.take(4).map(|bytes| bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
    }

    /// A string preceded by its length.
    fn string(&mut self) -> Result<&'a [u8], Malformed> {
        let len = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        if len > MAX_STRING {
            return Err("a string of the option is longer than 4096 bytes");
        }
        self.take(len)
    }

    fn end(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err("the option's payload is too long") }
    }
}

/// INFO and GO.
#[derive(Debug, PartialEq, Eq)]
pub struct InfoRequest<'a> {
    /// The export asked for.
    pub name: &'a [u8],
    /// The client wants the export's own name.
    pub want_name: bool,
    /// The client wants the description.
    pub want_description: bool,
    /// The client wants block sizes.
    pub want_block_size: bool,
}

impl<'a> InfoRequest<'a> {
    /// Parses the payload; information types that we do not know are ignored.
    pub fn parse(payload: &'a [u8]) -> Result<Self, Malformed> {
        use super::wire::info;
        let mut fields = Fields(payload);
        let mut request = Self {
            name: fields.string()?,
            want_name: false,
            want_description: false,
            want_block_size: false,
        };
        for _ in 0..fields.u16()? {
            match fields.u16()? {
                info::NAME => request.want_name = true,
                info::DESCRIPTION => request.want_description = true,
                info::BLOCK_SIZE => request.want_block_size = true,
                _ => {}
            }
        }
        fields.end()?;
        Ok(request)
    }
}

/// LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Debug, PartialEq, Eq)]
pub struct ContextRequest<'a> {
    /// The export whose contexts are meant.
    pub name: &'a [u8],
    /// How many queries there are.
    pub count: u32,
    /// The queries, each with its length before it; checked.
    queries: &'a [u8],
}

impl<'a> ContextRequest<'a> {
    /// Parses the payload.
    pub fn parse(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(payload);
        let name = fields.string()?;
        let count = fields.u32()?;
        let queries = fields.0;
        // Each query takes at least four bytes, so a lying count ends at the end of the payload.
        for _ in 0..count {
            fields.string()?;
        }
        fields.end()?;
        Ok(Self { name, count, queries })
    }

    /// The queries one by one.
    pub fn queries(&self) -> impl Iterator<Item = &'a [u8]> {
        let mut fields = Fields(self.queries);
        std::iter::from_fn(move || fields.string().ok())
    }
}
