"""The decoder: serves guided generation under OpenAI's routes."""
