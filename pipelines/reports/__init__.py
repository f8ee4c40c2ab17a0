"""What a person looks at: contact sheets, cards, reports, tables and the charts in them."""
