package redistest

import (
	_ "embed"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"
)

// Clock is the time of day of servers that were started with it: it runs as fast as
// the machine's, and as far ahead as Advance has let pass.
type Clock struct {
	tb      testing.TB
	library string
	file    string

	mu    sync.Mutex // guards ahead, and the file's content
	ahead time.Duration
}

//go:embed testdata/clock.c
var clockSource []byte

// NewClock returns a clock that shows the machine's time. It needs a C compiler; the test
// is skipped on systems other than Linux, where it cannot be put before a server's.
func NewClock(tb testing.TB) *Clock {
	tb.Helper()
	if runtime.GOOS != "linux" {
		tb.Skip("the clock of a Redis can only be moved on Linux")
	}
	dir := tempDir(tb)
	c := &Clock{tb: tb, library: filepath.Join(dir, "clock.so"), file: filepath.Join(dir, "ahead")}
	c.Advance(0)
	source := filepath.Join(dir, "clock.c")
	if err := os.WriteFile(source, clockSource, 0o600); err != nil {
		tb.Fatal(err)
	}
	compiler, err := exec.LookPath("cc")
	if err != nil {
		tb.Fatal("no C compiler (cc), which makes the clock of these tests: apt-get install gcc")
	}
	if out, err := run(compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-o", c.library, source); err != nil {
		tb.Fatalf("make the clock: %v\n%s", err, out)
	}
	return c
}

// Advance lets that much time pass at once.
func (c *Clock) Advance(d time.Duration) {
	c.tb.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead += d
	f, err := os.OpenFile(c.file, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		c.tb.Fatal(err)
	}
	defer f.Close()
	// In place, as servers have the file mapped, and at once, as it is a word.
	if _, err := f.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(c.ahead)), 0); err != nil {
		c.tb.Fatal(err)
	}
}

// Now is the servers' time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.ahead)
}

// environ has a server go by the clock.
func (c *Clock) environ() []string {
	return append(os.Environ(), "LD_PRELOAD="+c.library, "REDISTEST_CLOCK="+c.file)
}
