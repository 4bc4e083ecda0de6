package stream

import (
	"net"
	"sync"
	"sync/atomic"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// smallSize is the payload that the first read of a relay may bring, and those that
// follow short ones: most connections never say more at a time, and many of them at
// once would take a buffer each.
const smallSize = 4 << 10

// bufferSize is the payload that one read of a relay may bring: the largest
// message in the default negotiation.
const bufferSize = 64 << 10

// bulkSize is as much for a relay that has more to read than that, again and again:
// fewer and larger calls wake fewer threads.
const bulkSize = wire.BulkMessage

// bulkMost is how many buffers of that size there may be in use, so that visitors
// who stop reading do not cost four times as much.
const bulkMost = 8

// buffers are shared by all relays; each has headroom for a frame's header, and
// room for another one at its end.
var (
	smallBuffers = sync.Pool{New: func() any { return newBuffer(smallSize) }}
	buffers      = sync.Pool{New: func() any { return newBuffer(bufferSize) }}
	bulkBuffers  = sync.Pool{New: func() any { return newBuffer(bulkSize) }}
	bulkUsed     atomic.Int32
)

const room = 2 * socket.Headroom

// newBuffer makes a buffer whose payload begins on a cache line: at 8 to 16 bytes behind
// the begin of a page, as the headroom alone would have it, some processors copy
// (`rep movsb`) at half the speed, which is most of what reading bulk costs.
func newBuffer(size int) *[]byte {
	const before = cacheLine - socket.Headroom
	b := make([]byte, before+room+size)[before:] // the allocator aligns the whole
	return &b
}

// cacheLine is as long as one is on most processors, in bytes.
const cacheLine = 64

func getBuffer() *[]byte { return buffers.Get().(*[]byte) }

func putBuffer(b *[]byte) {
	switch len(*b) {
	case room + smallSize:
		smallBuffers.Put(b)
	case room + bulkSize:
		bulkBuffers.Put(b)
		bulkUsed.Add(-1)
	default:
		buffers.Put(b)
	}
}

// piece is how much a source reads at a time.
type piece struct {
	most  int  // bytes; bufferSize says that it may grow
	bulk  bool // it has
	large int  // so many reads to come may bring more than smallSize
}

// largeReads is how many reads may be short before small buffers do again.
const largeReads = 16

// get returns a buffer, and how much may be read into it.
func (p *piece) get() (*[]byte, int) {
	if p.bulk && bulkUsed.Load() < bulkMost { // one or two too many do no harm
		bulkUsed.Add(1)
		return bulkBuffers.Get().(*[]byte), bulkSize
	}
	if p.large == 0 {
		return smallBuffers.Get().(*[]byte), min(p.most, smallSize)
	}
	return getBuffer(), p.most
}

// saw is told what was read.
func (p *piece) saw(n int) {
	p.bulk = n >= bufferSize
	switch {
	case n >= smallSize:
		p.large = largeReads
	case p.large > 0:
		p.large--
	}
}

// mayPass reports whether bulk may be passed on without a buffer. It counts as one
// of the large ones then, as so much waits in the system.
func (p *piece) mayPass() bool { return p.bulk && bulkUsed.Load() < bulkMost } // as in get

// source is what a relay reads from. Where it can it waits without a buffer, as
// most connections wait most of the time.
type source interface {
	// read returns n bytes, behind headroom, in a buffer that is the caller's to
	// put back when n > 0, or without one when it has sent them on already. Errors
	// are as of net.Conn's Read, or Write.
	read() (buf *[]byte, n int, err error)
}

// newSource reads from c at most most bytes at a time, which are for dst.
func newSource(c, dst net.Conn, most int) source {
	switch c := c.(type) {
	case *Stream:
		to, _ := dst.(*net.TCPConn)
		return &streamSource{c, to, piece{most: most}}
	case *net.TCPConn:
		to, _ := dst.(*Stream)
		return newTCPSource(c, to, most)
	}
	return plainSource{c, most}
}

type plainSource struct {
	c    net.Conn
	most int
}

func (s plainSource) read() (*[]byte, int, error) {
	buf := getBuffer()
	n, err := s.c.Read((*buf)[socket.Headroom : socket.Headroom+s.most])
	if n == 0 {
		putBuffer(buf)
		return nil, 0, err
	}
	return buf, n, err
}

type streamSource struct {
	c  *Stream
	to *net.TCPConn // that it may pass bulk to; nil: none
	piece
}

func (s *streamSource) read() (*[]byte, int, error) {
	if err := s.c.wait(); err != nil {
		return nil, 0, err
	}
	if s.to != nil && s.mayPass() {
		bulkUsed.Add(1)
		n, passed, err := s.c.passTo(s.to)
		bulkUsed.Add(-1)
		if passed {
			s.saw(n)
			return nil, n, err
		}
	}
	buf, most := s.get()
	n, err := s.c.fill((*buf)[socket.Headroom:], most)
	s.saw(n)
	if n == 0 {
		putBuffer(buf)
		return nil, 0, err
	}
	return buf, n, err
}
