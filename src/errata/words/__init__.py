"""The words of a text and the names it mentions, by Unicode's rules. It knows no model."""
