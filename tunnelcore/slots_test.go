package tunnelcore

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		s := &slots{limit: 2}
		for range 2 {
			if err := s.acquire(ctx, 0, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.acquire(ctx, 0, nil); !errors.Is(err, errNoSlot) {
			t.Errorf("a third at once: %v", err)
		}
		began := time.Now()
		if err := s.acquire(ctx, time.Second, nil); !errors.Is(err, errNoSlot) || time.Since(began) != time.Second {
			t.Errorf("a third: %v after %v", err, time.Since(began))
		}
		canceled, cancel := context.WithCancel(ctx)
		cancel()
		if err := s.acquire(canceled, time.Second, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("canceled: %v", err)
		}

		// Two wait; they are served in turn, and crowded was called for each.
		var order []int
		var wg sync.WaitGroup
		crowded := 0
		for i := range 2 {
			wg.Go(func() {
				if err := s.acquire(ctx, time.Minute, func() { crowded++ }); err != nil {
					t.Error(err)
				}
				order = append(order, i)
			})
			synctest.Wait()
		}
		for range 2 {
			s.release()
			synctest.Wait()
		}
		wg.Wait()
		if len(order) != 2 || order[0] != 0 || crowded != 2 {
			t.Errorf("order %v, crowded %d", order, crowded)
		}

		// Fewer places: those that are taken stay.
		s.resize(1)
		s.release()
		if err := s.acquire(ctx, 0, nil); !errors.Is(err, errNoSlot) {
			t.Errorf("beyond the new limit: %v", err)
		}
		s.release()
		if !s.idle() {
			t.Error("not idle")
		}
		// More places serve those who wait.
		if err := s.acquire(ctx, 0, nil); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- s.acquire(ctx, time.Minute, nil) }()
		synctest.Wait()
		s.resize(2)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestSlotsBoundTheirQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slots{}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range maxQueue {
			wg.Go(func() { _ = s.acquire(ctx, time.Hour, nil) }) // ends with ctx
		}
		synctest.Wait()
		began := time.Now()
		if err := s.acquire(ctx, time.Hour, nil); !errors.Is(err, errNoSlot) || time.Since(began) != 0 {
			t.Errorf("one too many: %v after %v", err, time.Since(began))
		}
		cancel()
		wg.Wait()
		if !s.idle() {
			t.Error("not idle")
		}
	})
}

// Whoever gives up at the moment of its turn passes it on.
func TestSlotsLoseNone(t *testing.T) {
	s := &slots{limit: 3}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for range 100 {
				if s.acquire(t.Context(), 20*time.Microsecond, nil) == nil {
					s.release()
				}
			}
		})
	}
	wg.Wait()
	if !s.idle() {
		t.Errorf("%d of %d used, %d wait", s.used, s.limit, len(s.queue))
	}
}
