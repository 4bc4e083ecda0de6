package device

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// Bounds of the line protocol.
const (
	linesMax  = 64 // connections at once
	lineMax   = 256
	lineIdle  = 5 * time.Minute
	lineWrite = 10 * time.Second
)

const help = `READ            the temperature, such as 4.37 C
NAME            the name of the probe
DOOR            OPEN or CLOSED
ALARM           ON or OFF, and the threshold
UNIT [C|F]      shows or sets the unit
ECHO TEXT       says it again
HELP            this
QUIT            ends the connection
`

// ServeLines speaks the line protocol with every connection that l accepts: a
// command per line, one line back for each (HELP: some more). It owns l, and
// returns when ctx has ended, or l fails, and every connection is closed.
func (d *Device) ServeLines(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	free := make(chan struct{}, linesMax)
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		select {
		case free <- struct{}{}:
		default:
			d.log.Warn("too many line connections")
			conn.Close()
			continue
		}
		conns.Go(func() {
			defer func() { <-free }()
			d.serveLine(ctx, conn)
		})
	}
}

// serveLine serves one connection until its end.
func (d *Device) serveLine(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	in := bufio.NewReaderSize(conn, lineMax)
	for {
		if err := conn.SetReadDeadline(time.Now().Add(lineIdle)); err != nil {
			return
		}
		line, err := in.ReadSlice('\n')
		last := err == io.EOF // what came before it still gets its answer
		answer, quit := "ERR line too long\n", true
		if err == nil || last {
			answer, quit = d.command(strings.TrimSpace(string(line)))
		} else if !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
		if err := conn.SetWriteDeadline(time.Now().Add(lineWrite)); err != nil {
			return
		}
		if _, err := io.WriteString(conn, answer); err != nil || quit || last {
			return
		}
	}
}

// command obeys one line. An empty line has an empty answer.
func (d *Device) command(line string) (answer string, quit bool) {
	word, rest, _ := strings.Cut(line, " ")
	rest = strings.TrimSpace(rest)
	r, s := d.Reading(), d.Settings()
	// For programs: a plain C or F, no degree sign.
	plain := func(celsius float64) string { return strings.Replace(s.Unit.format(celsius, 2), "°", "", 1) }
	switch strings.ToUpper(word) {
	case "":
		return "", false
	case "READ":
		return plain(r.Celsius) + "\n", false
	case "NAME":
		return s.Name + "\n", false
	case "DOOR":
		if r.Door {
			return "OPEN\n", false
		}
		return "CLOSED\n", false
	case "ALARM":
		if r.Celsius > s.Alarm {
			return "ON above " + plain(s.Alarm) + "\n", false
		}
		return "OFF above " + plain(s.Alarm) + "\n", false
	case "UNIT":
		switch unit := Unit(strings.ToUpper(rest)); unit {
		case "":
		case Celsius, Fahrenheit:
			d.update(func(s *Settings) { s.Unit = unit })
			s.Unit = unit
		default:
			return "ERR the unit is C or F\n", false
		}
		return string(s.Unit) + "\n", false
	case "ECHO":
		return rest + "\n", false
	case "HELP":
		return help, false
	case "QUIT":
		return "BYE\n", true
	}
	return "ERR unknown command; HELP lists them\n", false
}
