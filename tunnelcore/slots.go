package tunnelcore

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// maxQueue bounds those who wait for one kind of slot.
const maxQueue = 256

// slots hands out a bounded number of places, to whoever asked first.
type slots struct {
	mu    sync.Mutex // guards what follows
	limit int
	used  int
	queue []chan struct{} // closed when its owner has got a place
}

// errNoSlot: there was no place in time, or too many wait for one.
var errNoSlot = errors.New("no slot")

// acquire takes a place, which release gives back. If there is none it calls
// crowded, if that is not nil, and waits up to wait. The error is errNoSlot, or
// that of ctx.
func (s *slots) acquire(ctx context.Context, wait time.Duration, crowded func()) error {
	s.mu.Lock()
	if s.used < s.limit && len(s.queue) == 0 {
		s.used++
		s.mu.Unlock()
		return nil
	}
	if wait <= 0 || len(s.queue) >= maxQueue {
		s.mu.Unlock()
		return errNoSlot
	}
	turn := make(chan struct{})
	s.queue = append(s.queue, turn)
	s.mu.Unlock()
	if crowded != nil {
		crowded()
	}
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	err := errNoSlot
	select {
	case <-turn:
		return nil
	case <-timeout.C:
	case <-ctx.Done():
		err = ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.queue, turn)
	if i < 0 { // it was the turn's just now: pass it on
		s.used--
		s.serveLocked()
		return err
	}
	s.queue = slices.Delete(s.queue, i, i+1)
	return err
}

// release gives a place back.
func (s *slots) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used--
	s.serveLocked()
}

// resize changes the number of places. Those that are taken beyond it stay so.
func (s *slots) resize(limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = limit
	s.serveLocked()
}

// serveLocked gives free places to those who wait. It wants mu.
func (s *slots) serveLocked() {
	for s.used < s.limit && len(s.queue) > 0 {
		s.used++
		close(s.queue[0])
		s.queue = s.queue[1:]
	}
}

// idle reports whether nobody has a place or waits for one.
func (s *slots) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used == 0 && len(s.queue) == 0
}
