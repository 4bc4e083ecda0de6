package harness

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
)

// Log keeps the lines that a process writes to one of its outputs. It is an
// io.Writer for that process, and safe for concurrent use.
type Log struct {
	mu      sync.Mutex
	lines   []string      // guarded by mu, as is all below
	partial []byte        // what follows the last newline
	changed chan struct{} // closed at the next line

	also *Log // gets each line, too; set before the first
}

// NewLog returns an empty log.
func NewLog() *Log { return &Log{changed: make(chan struct{})} }

// Write takes a piece of output; it never fails.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.partial = append(l.partial, p...)
	for {
		line, rest, found := bytes.Cut(l.partial, []byte("\n"))
		if !found {
			return len(p), nil
		}
		l.partial = append([]byte(nil), rest...)
		l.addLocked(string(line))
		if l.also != nil { // which has no other of its own
			l.also.add(string(line))
		}
	}
}

func (l *Log) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.addLocked(line)
}

// addLocked appends a line; it is called with mu held.
func (l *Log) addLocked(line string) {
	l.lines = append(l.lines, line)
	close(l.changed)
	l.changed = make(chan struct{})
}

// Mark is the number of lines so far: the place from which a later call reads on.
func (l *Log) Mark() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.lines)
}

// Since returns the lines after mark.
func (l *Log) Since(mark int) []string {
	lines, _ := l.since(mark)
	return lines
}

func (l *Log) since(mark int) ([]string, chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.lines[min(mark, len(l.lines)):]...), l.changed
}

// Wait returns the first line after mark that match accepts, and the mark that
// follows it. The error is that of ctx, with the last lines seen.
func (l *Log) Wait(ctx context.Context, mark int, match func(line string) bool) (string, int, error) {
	for at := mark; ; {
		lines, changed := l.since(at)
		for i, line := range lines {
			if match(line) {
				return line, at + i + 1, nil
			}
		}
		at += len(lines)
		select {
		case <-changed:
		case <-ctx.Done():
			return "", at, fmt.Errorf("%w; last lines:\n%s", context.Cause(ctx), tail(l.Since(mark), 15))
		}
	}
}

// tail joins the last n lines, indented, each cut to a readable length.
func tail(lines []string, n int) string {
	const widest = 600
	var b strings.Builder
	for _, line := range lines[max(0, len(lines)-n):] {
		if len(line) > widest {
			line = line[:widest] + "…"
		}
		b.WriteString("    ")
		b.WriteString(line)
		b.WriteByte('\n')
	}
	return b.String()
}
