package agent_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/iottunnel/iottunnel/agent"
)

// A device with a web server on port 8080, and ssh for its maintainers.
func Example() {
	a, err := agent.New(agent.Config{
		Servers: []string{"wss://edge.example.com"},
		Device:  "cam-17",
		Token:   os.Getenv("IOTTUNNEL_TOKEN"),
		Forwards: []agent.Forward{
			{Port: 80, Target: "127.0.0.1:8080"},
			{Port: 22, Target: "127.0.0.1:22"},
		},
		OnUp: func(up agent.Up) {
			for _, p := range up.Ports {
				fmt.Println(p.Number, p.Kind, p.URL)
			}
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := a.Run(ctx); err != nil {
		log.Fatal(err)
	}
}

// A handler is served to the world, and no port of the device is open.
func ExampleListen() {
	l, forward := agent.Listen(80, agent.HTTP)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "hello,", r.RemoteAddr)
	})}
	go server.Serve(l)
	defer server.Close()

	a, err := agent.New(agent.Config{
		Servers:  []string{"wss://edge.example.com"},
		Device:   "thermometer-1",
		Token:    os.Getenv("IOTTUNNEL_TOKEN"),
		Forwards: []agent.Forward{forward},
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	a.Run(ctx)
}

// A device without a secret gets its own for a claim code, which serves once.
func ExampleEnroll() {
	config := agent.Config{Servers: []string{"wss://edge.example.com"}, Device: "cam-17"}
	token, err := agent.Enroll(context.Background(), config, "7KQ2M-X04TB-9ZC6H-WD3NA")
	var refused *agent.RefusedError
	switch {
	case errors.As(err, &refused) && refused.Code == "unauthorized":
		log.Fatal("the code was used, or has expired: ask for another one")
	case err != nil:
		log.Fatal("try again later: ", err)
	}
	if err := os.WriteFile("token", []byte(token), 0o600); err != nil {
		log.Fatal(err)
	}
}

// A technician's program reaches ssh of a device, with a grant of the edge's operator.
func ExampleConnect() {
	c, err := agent.Connect(context.Background(), agent.Config{
		Servers: []string{"wss://edge.example.com"},
		Device:  "cam-17",
		Token:   os.Getenv("GRANT"),
	}, 22)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	greeting := make([]byte, 100)
	n, err := c.Read(greeting)
	fmt.Println(string(greeting[:n]), err)
}

// What an agent is about can be asked at any time, and is told when it changes.
func ExampleAgent_Status() {
	_, forward := agent.Listen(80, agent.HTTP)
	a, err := agent.New(agent.Config{
		Servers:   []string{"wss://edge.example.com"},
		Device:    "cam-17",
		Forwards:  []agent.Forward{forward},
		Heartbeat: agent.AutoHeartbeat, // each byte costs money
		OnUp:      func(up agent.Up) { fmt.Println("reached at", up.Hostname) },
		OnDown:    func(err error, next time.Duration) { fmt.Println("away:", err, "next attempt in", next) },
	})
	if err != nil {
		log.Fatal(err)
	}
	s := a.Status()
	fmt.Println(s.State, s.Tunnels, s.Traffic.DayReceived+s.Traffic.DaySent)
	// Output: stopped 0 0
}

// What a Forward leads to can be tried without an edge.
func ExampleForward() {
	l, forward := agent.Listen(7, agent.TCP)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.WriteString(c, "hello")
	}()
	c, err := forward.Dial(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	fmt.Println(string(b), err)
	// Output: hello <nil>
}
