package caddymodule

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

const (
	// journalQueue bounds the events that wait to be written, and journalBatch those of
	// one write.
	journalQueue = 20_000
	journalBatch = 256
	// journalTime bounds a write. Nothing depends on it.
	journalTime = 10 * time.Second
)

// journal writes what happens to devices into the registry, for operators to read. It
// never keeps an edge waiting: what finds its queue full is lost, and said so.
type journal struct {
	node  string
	reg   registry.Journals
	log   func() *slog.Logger
	queue chan registry.Event
	quit  chan struct{}
	done  chan struct{} // closed when all is written that can be
	lost  atomic.Int64  // events that found the queue full
}

// newJournal returns the journal of a node, which start begins and stop ends. log is
// where to say what is missing.
func newJournal(node string, log func() *slog.Logger) *journal {
	return &journal{node: node, log: log, queue: make(chan registry.Event, journalQueue), quit: make(chan struct{}), done: make(chan struct{})}
}

func (j *journal) start(reg registry.Journals) {
	j.reg = reg
	go j.run() // stop waits for it
}

// note has an event of this node written. It never waits.
func (j *journal) note(e registry.Event) {
	e.Node = j.node
	select {
	case j.queue <- e:
	default:
		j.lost.Add(1) // write tells
	}
}

func (j *journal) run() {
	defer close(j.done)
	for {
		select {
		case e := <-j.queue:
			j.write(e)
		case <-j.quit:
			j.finish()
			return
		}
	}
}

// finish writes what is waiting, until a write fails: whoever stops waits for it.
func (j *journal) finish() {
	for ok := true; ok; {
		select {
		case e := <-j.queue:
			ok = j.write(e)
		default:
			return
		}
	}
}

// write writes first and more of what is waiting.
func (j *journal) write(first registry.Event) bool {
	events := []registry.Event{first}
	for len(events) < journalBatch && len(j.queue) > 0 {
		events = append(events, <-j.queue)
	}
	ctx, cancel := context.WithTimeout(context.Background(), journalTime)
	defer cancel()
	err := j.reg.Note(ctx, events)
	missing := j.lost.Swap(0)
	if err != nil {
		missing += int64(len(events))
	}
	if missing > 0 {
		j.log().Warn("what happened to devices is missing in their histories", slog.Int64("events", missing), slog.Any("error", err))
	}
	return err == nil
}

// stop writes what is waiting and ends the journal.
func (j *journal) stop() {
	close(j.quit)
	<-j.done
}
