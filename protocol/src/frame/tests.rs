use super::*;
use proptest::prelude::*;

fn encode(frames: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut buffer = FrameBuffer::default();
    for (header, payload) in frames {
        buffer.push(header, Bytes::copy_from_slice(payload)).unwrap();
    }
    let expected = buffer.len();
    let mut chunks = VecDeque::new();
    buffer.take(&mut chunks);
    assert!(buffer.is_empty());
    let wire: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.to_vec()).collect();
    assert_eq!(wire.len(), expected);
    wire
}

fn decode_all(decoder: &mut FrameDecoder) -> Result<Vec<Frame>, FrameError> {
    let mut frames = Vec::new();
    while let Some(frame) = decoder.next_frame()? {
        frames.push(frame);
    }
    Ok(frames)
}

fn prefix(length: u32, header: u32) -> Bytes {
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend_from_slice(&header.to_le_bytes());
    bytes.into()
}

#[test]
fn the_layout_is_as_drawn() {
    let wire = encode(&[("ab".to_owned(), vec![7, 8, 9])]);
    assert_eq!(wire, [10, 0, 0, 0, 3, 0, 0, 0, 2, b'a', b'b', 7, 8, 9]);
}

#[test]
fn impossible_lengths_are_refused_before_anything_is_allocated() {
    let cases = [
        (prefix(3, 0), FrameError::HeaderOutsideFrame { frame: 3, header: 0 }),
        (prefix(u32::MAX, 4), FrameError::FrameTooLong { bytes: u32::MAX as usize - 4 }),
        (prefix(20, 17), FrameError::HeaderOutsideFrame { frame: 16, header: 17 }),
        (prefix(4 << 20, 2 << 20), FrameError::HeaderTooLong { bytes: 2 << 20 }),
    ];
    for (bytes, expected) in cases {
        let mut decoder = FrameDecoder::default();
        decoder.push(bytes);
        assert_eq!(decoder.next_frame(), Err(expected.clone()));
        decoder.push(Bytes::from_static(&[4, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(decoder.next_frame(), Err(expected), "the stream stays broken");
    }
}

#[test]
fn a_message_that_exceeds_the_limits_leaves_the_buffer_as_it_was() {
    let mut buffer = FrameBuffer::default();
    buffer.push(&1u8, Bytes::from_static(b"x")).unwrap();
    let before = buffer.len();
    let header = vec![0u8; HEADER_BYTES_MAX + 1];
    assert!(matches!(buffer.push(&header, Bytes::new()), Err(FrameError::HeaderTooLong { .. })));
    let payload = Bytes::from(vec![0u8; FRAME_BYTES_MAX]);
    assert!(matches!(buffer.push(&1u8, payload), Err(FrameError::FrameTooLong { .. })));
    assert_eq!(buffer.len(), before);
}

#[test]
fn bytes_behind_a_header_and_a_cut_stream_are_errors() {
    assert_eq!(decode_header::<u8>(&[1, 2]), Err(FrameError::TrailingBytes { bytes: 1 }));
    let wire = encode(&[("name".to_owned(), vec![1; 100])]);
    for cut in 1..wire.len() {
        let mut decoder = FrameDecoder::default();
        decoder.push(Bytes::copy_from_slice(&wire[..cut]));
        assert_eq!(decoder.next_frame(), Ok(None));
        assert_eq!(decoder.finish(), Err(FrameError::Truncated { bytes: cut }));
    }
}

proptest! {
    #[test]
    fn frames_survive_any_cutting(
        frames in prop::collection::vec((".{0,20}", prop::collection::vec(any::<u8>(), 0..6000)), 0..8),
        cuts in prop::collection::vec(1usize..5000, 1..40),
    ) {
        let mut wire = Bytes::from(encode(&frames));
        let mut decoder = FrameDecoder::default();
        let mut decoded = Vec::new();
        for cut in cuts.iter().cycle() {
            if wire.is_empty() {
                break;
            }
            decoder.push(wire.split_to((*cut).min(wire.len())));
            decoded.extend(decode_all(&mut decoder).unwrap());
        }
        prop_assert_eq!(decoder.finish(), Ok(()));
        let decoded: Vec<(String, Vec<u8>)> =
            decoded.iter().map(|frame| (frame.decode().unwrap(), frame.payload.to_vec())).collect();
        prop_assert_eq!(decoded, frames);
    }

    #[test]
    fn garbage_never_panics_and_never_holds_more_than_it_was_given(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..32),
    ) {
        let mut decoder = FrameDecoder::default();
        let mut given = 0;
        for chunk in chunks {
            given += chunk.len();
            decoder.push(chunk.into());
            let Ok(frames) = decode_all(&mut decoder) else { return Ok(()) };
            for frame in frames {
                let _ = frame.decode::<(u64, String)>();
            }
            prop_assert!(decoder.pending() <= given);
        }
    }
}
