package socket

import (
	"encoding/binary"
	"math/bits"
)

// applyMask XORs b with the mask (RFC 6455 §5.3), and returns the mask for the
// byte after b.
func applyMask(b []byte, mask [4]byte) [4]byte {
	key := binary.LittleEndian.Uint32(mask[:])
	wide := uint64(key)<<32 | uint64(key)
	for len(b) >= 32 {
		// Four words at a time: the bounds are checked once.
		c := b[:32]
		binary.LittleEndian.PutUint64(c[0:], binary.LittleEndian.Uint64(c[0:])^wide)
		binary.LittleEndian.PutUint64(c[8:], binary.LittleEndian.Uint64(c[8:])^wide)
		binary.LittleEndian.PutUint64(c[16:], binary.LittleEndian.Uint64(c[16:])^wide)
		binary.LittleEndian.PutUint64(c[24:], binary.LittleEndian.Uint64(c[24:])^wide)
		b = b[32:]
	}
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(b)^wide)
		b = b[8:]
	}
	for i := range b {
		b[i] ^= mask[i&3]
	}
	return rotate(mask, len(b))
}

// rotate is the mask for what follows n bytes.
func rotate(mask [4]byte, n int) [4]byte {
	key := binary.LittleEndian.Uint32(mask[:])
	binary.LittleEndian.PutUint32(mask[:], bits.RotateLeft32(key, -8*(n&3)))
	return mask
}
