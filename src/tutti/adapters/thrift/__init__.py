"""The ring's public protocol: Thrift IDL, and asyncio clients and servers that stock Apache Thrift can talk to."""
