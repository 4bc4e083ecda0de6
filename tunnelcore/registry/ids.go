package registry

import (
	"context"
	"slices"
	"sync"
)

// ids is a set of device ids in order. It is safe for concurrent use.
//
// They lie in blocks of at most maxBlock, so that adding one among 100,000 moves
// a few kilobytes and a page is a binary search and a copy.
type ids struct {
	mu     sync.RWMutex // guards blocks
	blocks [][]string   // none empty
}

const maxBlock = 512

// blockLocked returns the index of the block where id is or would be. The caller
// holds mu.
func (s *ids) blockLocked(id string) int {
	i, _ := slices.BinarySearchFunc(s.blocks, id, func(b []string, id string) int {
		if b[len(b)-1] < id {
			return -1
		}
		return 1 // the first block that does not end before id
	})
	return i
}

func (s *ids) add(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.blockLocked(id)
	if i == len(s.blocks) {
		if i == 0 {
			s.blocks = append(s.blocks, []string{id})
			return
		}
		i-- // after all others: the last block takes it
	}
	at, found := slices.BinarySearch(s.blocks[i], id)
	if found {
		return
	}
	b := slices.Insert(s.blocks[i], at, id)
	s.blocks[i] = b
	if len(b) > maxBlock {
		half := slices.Clone(b[maxBlock/2:])
		clear(b[maxBlock/2:])
		s.blocks[i] = b[:maxBlock/2]
		s.blocks = slices.Insert(s.blocks, i+1, half)
	}
}

func (s *ids) remove(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.blockLocked(id)
	if i == len(s.blocks) {
		return
	}
	at, found := slices.BinarySearch(s.blocks[i], id)
	if !found {
		return
	}
	s.blocks[i] = slices.Delete(s.blocks[i], at, at+1)
	if len(s.blocks[i]) == 0 {
		s.blocks = slices.Delete(s.blocks, i, i+1)
	}
}

// after appends to page up to n ids that come after id.
func (s *ids) after(page []string, id string, n int) []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	i := s.blockLocked(id)
	if i == len(s.blocks) {
		return page
	}
	at, found := slices.BinarySearch(s.blocks[i], id)
	if found {
		at++
	}
	for ; n > 0 && i < len(s.blocks); i, at = i+1, 0 {
		piece := s.blocks[i][at:]
		piece = piece[:min(n, len(piece))]
		page = append(page, piece...)
		n -= len(piece)
	}
	return page
}

// page lists what show has of the ids after `after`, at most limit, and fewer only at
// the end of the set.
func page[T any](ctx context.Context, of *ids, after string, limit int, show func(id string) (T, bool)) ([]T, error) {
	var list []T
	var chunk []string
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n := min(limit-len(list), maxBlock)
		if n <= 0 {
			return list, nil
		}
		chunk = of.after(chunk[:0], after, n)
		for _, id := range chunk {
			if shown, ok := show(id); ok {
				list = append(list, shown)
			}
		}
		if len(chunk) < n {
			return list, nil
		}
		after = chunk[n-1]
	}
}
