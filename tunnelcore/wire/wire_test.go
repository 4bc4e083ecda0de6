package wire

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/iottunnel/iottunnel/internal/golden"
)

// TestVectors holds the package to the tables of these tests, and testdata, which
// other implementations of the protocol are tested with, to the same.
func TestVectors(t *testing.T) {
	checkHelloVectors(t)
	checkMessageVectors(t)
	checkFrameVectors(t)
	golden.Check(t, "hello.json", string(lines(t, helloVectors)))
	golden.Check(t, "messages.json", string(lines(t, messageVectors)))
	golden.Check(t, "frames.json", string(lines(t, frameVectors)))
	golden.Check(t, "transcript.json", string(lines(t, transcript(t))))
	golden.Check(t, "transcript_early.json", string(lines(t, transcriptEarly(t))))
	golden.Check(t, "transcript_inline.json", string(lines(t, transcriptInline(t))))
}

// lines is a JSON array with an element per line, so that a diff reads well.
func lines[E any](t *testing.T, list []E) []byte {
	t.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	b.WriteString("[\n")
	for i, e := range list {
		if i > 0 {
			b.Truncate(b.Len() - 1) // the line feed that Encode ends with
			b.WriteString(",\n")
		}
		if err := enc.Encode(e); err != nil {
			t.Fatal(err)
		}
	}
	b.WriteString("]\n")
	return b.Bytes()
}

func TestID(t *testing.T) {
	a, b := NewID(), NewID()
	if !ValidID(a) || !ValidID(b) || a == b {
		t.Errorf("NewID drew %q and %q", a, b)
	}
	for s, want := range map[string]bool{
		"0123456789abcdef0123456789abcdef":  true,
		"0123456789abcdef0123456789abcde":   false,
		"0123456789abcdef0123456789abcdef0": false,
		"0123456789abcdef0123456789abcdeg":  false,
		"0123456789abcdef0123456789abcde/":  false, // below 0
		"0123456789abcdef0123456789abcde:":  false, // above 9
		"0123456789abcdef0123456789abcde`":  false, // below a
		"0123456789abcdef0123456789abcdeF":  false,
		"":                                  false,
	} {
		if got := ValidID(s); got != want {
			t.Errorf("ValidID(%q) = %v", s, got)
		}
	}
}

func TestRetry(t *testing.T) {
	for code, want := range map[int]Retry{
		CloseNormal: RetrySoon, CloseGoingAway: RetrySoon, CloseProtocol: RetrySoon, CloseTooBig: RetrySoon, CloseRestart: RetrySoon,
		1006: RetrySoon, 3999: RetrySoon,
		4000: RetrySlow, CloseReplaced: RetrySlow, CloseRevoked: RetrySlow, 4099: RetrySlow,
		CloseMalformed: RetryBackoff, CloseOverloaded: RetryBackoff, CloseExpired: RetryBackoff, 4199: RetryBackoff,
		4200: RetrySoon, 0: RetrySoon,
	} {
		if got := RetryAfterClose(code); got != want {
			t.Errorf("RetryAfterClose(%d) = %v; want %v", code, got, want)
		}
	}
	for status, want := range map[int]Retry{
		302: RetryBackoff, 400: RetryBackoff, 401: RetrySlow, 403: RetrySlow, 404: RetryBackoff, 409: RetryBackoff,
		426: RetryBackoff, 429: RetryBackoff, 500: RetryBackoff, 503: RetryBackoff,
	} {
		if got := RetryAfterStatus(status); got != want {
			t.Errorf("RetryAfterStatus(%d) = %v; want %v", status, got, want)
		}
	}
}
