# An image of a device: the agent, and the thermometer whose page it forwards.
#
#   docker build -f examples/cluster/agent.Dockerfile -t iottunnel-agent .

FROM golang:1.26-alpine AS build
COPY . /src
WORKDIR /src
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o /out/ ./agent/cmd/iottunnel-agent ./examples/thermometer

FROM alpine:3
COPY --from=build /out/ /usr/local/bin/
USER 1001:0
ENTRYPOINT ["iottunnel-agent"]
