package wire

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
)

// frameVector is a case of testdata/frames.json: a binary message of a control
// socket in hex, and either what it says, or that it is malformed and closes the
// socket with 4100. A kind that is not of this version is none of these: it resets
// its stream.
type frameVector struct {
	Name    string `json:"name"`
	Input   string `json:"input"`
	Kind    string `json:"kind,omitempty"` // data, fin, reset, move, credit, unknown
	Stream  uint32 `json:"stream,omitempty"`
	Payload string `json:"payload,omitempty"` // of data and unknown, in hex
	Credit  int    `json:"credit,omitempty"`
	Error   string `json:"error,omitempty"`
}

var frameVectors = []frameVector{
	{Name: "data", Input: "0100000001" + "68690d0a", Kind: "data", Stream: 1, Payload: "68690d0a"},
	{Name: "data of one byte", Input: "010000000100", Kind: "data", Stream: 1, Payload: "00"},
	{Name: "data of the last stream", Input: "01ffffffff61", Kind: "data", Stream: 4294967295, Payload: "61"},
	{Name: "data of 4096 bytes", Input: "0101020304" + strings.Repeat("7a", MaxFrame), Kind: "data", Stream: 0x01020304, Payload: strings.Repeat("7a", MaxFrame)},
	{Name: "fin", Input: "0200000001", Kind: "fin", Stream: 1},
	{Name: "reset", Input: "0300000001", Kind: "reset", Stream: 1},
	{Name: "move", Input: "0480000000", Kind: "move", Stream: 0x80000000},
	{Name: "credit", Input: "050000000100001000", Kind: "credit", Stream: 1, Credit: 4096},
	{Name: "least credit", Input: "050000000100000001", Kind: "credit", Stream: 1, Credit: 1},
	{Name: "greatest credit", Input: "050000000100100000", Kind: "credit", Stream: 1, Credit: MaxMessage},
	{Name: "kind 0", Input: "0000000001", Kind: "unknown", Stream: 1},
	{Name: "kind 6 with a payload", Input: "060000000161", Kind: "unknown", Stream: 1, Payload: "61"},
	{Name: "kind 255", Input: "ff00000001", Kind: "unknown", Stream: 1},

	{Name: "empty", Input: "", Error: "malformed"},
	{Name: "header cut short", Input: "01000000", Error: "malformed"},
	{Name: "stream 0", Input: "010000000061", Error: "malformed"},
	{Name: "unknown kind of stream 0", Input: "0600000000", Error: "malformed"},
	{Name: "data of 4097 bytes", Input: "0100000001" + strings.Repeat("7a", MaxFrame+1), Error: "malformed"},
	{Name: "unknown kind of 4097 bytes", Input: "0600000001" + strings.Repeat("7a", MaxFrame+1), Error: "malformed"},
	{Name: "data without data", Input: "0100000001", Error: "malformed"},
	{Name: "fin with a payload", Input: "020000000100", Error: "malformed"},
	{Name: "reset with a payload", Input: "030000000100", Error: "malformed"},
	{Name: "move with a payload", Input: "040000000100", Error: "malformed"},
	{Name: "credit without a number", Input: "0500000001", Error: "malformed"},
	{Name: "credit of 3 bytes", Input: "0500000001000001", Error: "malformed"},
	{Name: "credit of 5 bytes", Input: "05000000010000000001", Error: "malformed"},
	{Name: "credit of 0", Input: "050000000100000000", Error: "malformed"},
	{Name: "credit of 1048577", Input: "050000000100100001", Error: "malformed"},
	{Name: "credit of 4294967295", Input: "0500000001ffffffff", Error: "malformed"},
}

var frameKinds = map[FrameKind]string{FrameData: "data", FrameFin: "fin", FrameReset: "reset", FrameMove: "move", FrameCredit: "credit"}

func checkFrameVectors(t *testing.T) {
	for _, v := range frameVectors {
		in, err := hex.DecodeString(v.Input)
		if err != nil {
			t.Fatalf("%s: %v", v.Name, err)
		}
		k, stream, payload, err := ParseFrame(in)
		if v.Error != "" || err != nil {
			if v.Error == "" || err == nil || k != 0 || stream != 0 || payload != nil {
				t.Errorf("%s: %d, %d, %x, %v", v.Name, k, stream, payload, err)
			}
			continue
		}
		got := frameVector{Name: v.Name, Input: hex.EncodeToString(append(AppendFrameHeader(nil, k, stream), payload...)), Kind: frameKinds[k], Stream: stream}
		switch k {
		case FrameCredit:
			got.Credit = Credit(payload)
			if b := AppendCredit(nil, stream, got.Credit); !bytes.Equal(b, in) {
				t.Errorf("%s: AppendCredit wrote %x", v.Name, b)
			}
		default:
			got.Payload = hex.EncodeToString(payload)
		}
		if got.Kind == "" {
			got.Kind = "unknown"
		}
		if got != v {
			t.Errorf("%s: got %+v", v.Name, got)
		}
	}
}

func FuzzParseFrame(f *testing.F) {
	for _, v := range frameVectors {
		in, _ := hex.DecodeString(v.Input) // TestVectors reads them all
		f.Add(in)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		k, stream, payload, err := ParseFrame(b)
		if err != nil {
			return
		}
		if stream == 0 || len(payload) > MaxFrame {
			t.Fatalf("%x: stream %d, %d bytes", b, stream, len(payload))
		}
		if again := append(AppendFrameHeader(nil, k, stream), payload...); !bytes.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
		if k == FrameCredit && (Credit(payload) < 1 || Credit(payload) > MaxMessage) {
			t.Fatalf("%x: credit of %d", b, Credit(payload))
		}
	})
}
